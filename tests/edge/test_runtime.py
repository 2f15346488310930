from __future__ import annotations

import gc
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from edge_support import CLASSES, SIDE, Cloud, images, make_update, norm_state, reference

from cema.edge.agent import EdgeAgent
from cema.edge.config import EdgeConfig, GuardConfig
from cema.edge.runtime import Runtime, build_active, build_runtime, pack_payload
from cema.edge.system import run_behind
from cema.errors import FormatError, LogitsError
from cema.formats.bundle import Bundle
from cema.formats.update import verify_payload


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_runs_the_norm_state_it_was_given(bundle: Bundle, seed: int) -> None:
    state, batch = norm_state(seed, spread=0.5), images(5, seed)
    got = Runtime(bundle, bundle.pack_norm(state)).run(bundle.manifest.preprocessing(batch))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, reference(state, batch), rtol=2e-4, atol=2e-4)


def test_runs_the_bundles_own_state_by_default(bundle: Bundle) -> None:
    batch = images(3)
    got = build_runtime(bundle).run(bundle.manifest.preprocessing(batch))
    np.testing.assert_allclose(got, reference(norm_state(), batch), rtol=2e-4, atol=2e-4)


def test_wrong_golden_logits_are_refused(bundle: Bundle) -> None:
    wrong = bundle.golden_logits.copy()
    wrong[0, 0] += 0.5
    with pytest.raises(LogitsError, match="golden"):
        build_runtime(bundle, bundle.pack_norm(norm_state()), wrong)
    with pytest.raises(LogitsError, match="shape"):
        build_runtime(bundle, bundle.pack_norm(norm_state()), wrong[:1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_state_that_is_not_finite_is_refused(bundle: Bundle, bad: float) -> None:
    state = norm_state()
    state["bn1.scale"] = state["bn1.scale"].copy()
    state["bn1.scale"][3] = bad
    with pytest.raises(FormatError, match=r"bn1\.scale"):
        build_runtime(bundle, bundle.pack_norm(state))


def test_a_state_of_another_model_is_refused(bundle: Bundle) -> None:
    state = norm_state()
    state["bn9.scale"] = state.pop("bn1.scale")
    with pytest.raises(FormatError, match=r"bn1\.scale"):
        Runtime(bundle, bundle.pack_norm(state))


def test_a_model_that_cannot_be_loaded_says_so(
    bundle: Bundle, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"not a model")
    monkeypatch.setattr(type(bundle), "model_path", broken)
    with pytest.raises(FormatError, match="export it again"):
        Runtime(bundle)


def test_an_empty_batch_gives_no_logits(bundle: Bundle) -> None:
    empty = np.empty((0, 3, 12, 12), np.float32)
    assert Runtime(bundle).run(empty).shape == (0, CLASSES)


class Sessions:
    """What is asked of ONNX Runtime: sessions built, the models they were given, and the batches they ran."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.models: list[Any] = []
        self.batches: list[int] = []
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()
        sessions = self

        class Counting(onnxruntime.InferenceSession):
            def __init__(self, model: Any, *args: Any, **options: Any) -> None:
                sessions.models.append(model)
                sessions.alive.add(self)
                super().__init__(model, *args, **options)

            def run(self, outputs: Any, inputs: dict[str, np.ndarray], options: Any = None) -> Any:
                sessions.batches += [len(batch) for batch in inputs.values()]
                return super().run(outputs, inputs, options)

        monkeypatch.setattr(onnxruntime, "InferenceSession", Counting)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Sessions:
    return Sessions(monkeypatch)


def test_a_version_is_one_session_tried_image_by_image(bundle: Bundle, sessions: Sessions) -> None:
    build_runtime(bundle)
    assert sessions.models == [str(bundle.model_path)], "read by ONNX Runtime alone, from its path"
    assert sessions.batches == [1] * len(bundle.golden_images)


def test_memory_is_given_back_once_and_the_logits_stay(bundle: Bundle, sessions: Sessions) -> None:
    runtime = Runtime(bundle)
    batch = bundle.manifest.preprocessing(images(3))
    first = runtime.run(batch)
    runtime.release()
    runtime.release()
    assert sessions.batches == [3, 1]
    np.testing.assert_array_equal(runtime.run(batch, release=True), first)
    runtime.release()
    assert sessions.batches == [3, 1, 3], "nothing is held after a run that releases"


@pytest.mark.parametrize(("limit", "most"), [(36.0, 2), (0.0, 1)])
def test_after_swaps_only_what_may_serve_is_alive(
    make_config: Callable[..., EdgeConfig],
    cloud: Cloud,
    bundle: Bundle,
    key: Ed25519PrivateKey,
    *,
    sessions: Sessions,
    limit: float,
    most: int,
) -> None:
    with EdgeAgent(make_config(cloud, guard=GuardConfig(limit=limit))) as agent:
        for version in (1, 2, 3):
            agent.predict(images(2))
            cloud.publish(make_update(bundle, key, version))
            assert agent.wait_for_version(version, 10)
        asked = len(cloud.requests)
        assert cloud.wait_for(lambda: len(cloud.requests) > asked + 1), "the step of the swap has ended"
        gc.collect()
        assert len(sessions.alive) == most
        assert len(sessions.models) == 4


def test_an_update_is_built_behind_all_else(
    bundle: Bundle, key: Ed25519PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = make_update(bundle, key, 1)
    payload = verify_payload(update.manifest, update.payload)
    norm = pack_payload(bundle, payload)
    builders: list[tuple[str, int]] = []

    class Noting(onnxruntime.InferenceSession):
        def __init__(self, *args: Any, **options: Any) -> None:
            priority = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
            builders.append((threading.current_thread().name, priority))
            super().__init__(*args, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Noting)
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    build_active(bundle, update.manifest, payload, norm)
    build_active(bundle, update.manifest, payload, norm, behind=False)
    build_active(bundle, update.manifest, payload, norm, threads=2)
    main = (threading.current_thread().name, mine)
    lowest = 19 if sys.platform == "linux" else mine
    assert builders == [("cema-behind", lowest), main, main]
    assert os.getpriority(os.PRIO_PROCESS, 0) == mine


def test_what_fails_behind_fails_here(bundle: Bundle) -> None:
    with pytest.raises(FormatError, match="no such"):
        run_behind(lambda: _raise(FormatError("no such thing")))
    assert run_behind(lambda: SIDE) == SIDE


def _raise(error: Exception) -> None:
    raise error
