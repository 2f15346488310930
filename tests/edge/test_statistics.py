"""Observing statistics on a device, against float64 NumPy."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from edge_support import (
    CHANNELS,
    CLASSES,
    PREPROCESSING,
    SIDE,
    images,
    norm_state,
    reference,
    weights,
)
from observing_bundle import TOTAL, observing_bundle, some_statistics
from recorded_folders import RECORDED
from statistics_reference import Blending, convolve

from cema.edge.runtime import build_runtime
from cema.edge.session import open_session
from cema.edge.statistics import StatisticsRuntime
from cema.errors import FormatError, LogitsError
from cema.formats.bundle import Bundle, check_golden
from cema.ondevice.folding import fold
from cema.ondevice.window import Blend


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, key: Ed25519PrivateKey) -> Bundle:
    return observing_bundle(tmp_path_factory.mktemp("observing") / "bundle", key)


def blended(norm: Blending, batch: np.ndarray) -> np.ndarray:
    """The small model with layers that blend, in float64."""
    w, x = weights(), batch.astype(np.float64)
    for i in range(2):
        x = np.maximum(norm(f"bn{i}", convolve(x, w[f"w{i}"])), 0)
    return 4 * x.mean((2, 3)) @ w["fc"].astype(np.float64).T


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("rate", [0.0, 0.125, 1.0])
def test_logits_and_statistics_are_those_of_the_blend(
    bundle: Bundle, rate: float, share: float, count: int
) -> None:
    affine, blend = norm_state(3, spread=0.4), Blend(some_statistics(3), rate, some_statistics(4), share)
    batch = PREPROCESSING(images(count, 5))
    logits, observed = StatisticsRuntime(bundle).under(affine).observe(batch, blend)
    norm = Blending(affine, bundle.manifest.statistics, *blend)
    expected = blended(norm, batch)
    assert logits.dtype == observed.dtype == np.float32
    assert logits.shape == (count, CLASSES)
    assert observed.shape == (2, TOTAL)
    np.testing.assert_allclose(logits, expected, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(observed, norm.observed(), rtol=1e-4, atol=1e-5)


def test_a_second_pass_with_what_the_first_one_observed_gives_the_same(bundle: Bundle) -> None:
    """At a rate of 1 nothing of what was known is left, and each layer observed what its input is for good."""
    runtime = StatisticsRuntime(bundle, threads=2).under(norm_state(2))
    batch = PREPROCESSING(images(6, 1))
    logits, observed = runtime.observe(batch, Blend(some_statistics(7), 1.0))
    # The statistics fold into the model, and the model answers as the graph did.
    folded = fold(norm_state(2), observed, bundle.manifest.statistics)
    served = build_runtime(bundle, bundle.pack_norm(folded), reference(folded, bundle.golden_images))
    np.testing.assert_allclose(served.run(batch), logits, rtol=1e-4, atol=1e-4)
    again, same = runtime.observe(batch, Blend(observed, 0.0))
    np.testing.assert_allclose(again, logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(same, observed, rtol=1e-4, atol=1e-5)


def test_with_what_the_bundle_has_it_is_the_source_model(bundle: Bundle) -> None:
    known = bundle.statistics()
    assert known is not None
    runtime = StatisticsRuntime(bundle).under(bundle.affine_state())
    logits, _ = runtime.observe(PREPROCESSING(bundle.golden_images), Blend(known, 0.0))
    check_golden(logits, bundle.golden_logits, bundle.manifest.tolerance)


def test_several_threads_may_observe_at_once(bundle: Bundle) -> None:
    runtime, known = StatisticsRuntime(bundle).under(norm_state(1)), some_statistics(1)
    batches = [PREPROCESSING(images(3, seed)) for seed in range(6)]
    alone = [runtime.observe(batch, Blend(known, 0.5)) for batch in batches]
    together: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def observe(place: int) -> None:
        together[place] = runtime.observe(batches[place], Blend(known, 0.5))

    threads = [threading.Thread(target=observe, args=(place,)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for place, (logits, observed) in enumerate(alone):
        np.testing.assert_array_equal(together[place][0], logits)
        np.testing.assert_array_equal(together[place][1], observed)


def test_the_session_needs_the_model_s_file_only_while_it_is_built(bundle: Bundle, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(bundle.path, copy)
    runtime = StatisticsRuntime(Bundle.load(copy)).under(norm_state())
    batch, known = PREPROCESSING(images(2)), some_statistics()
    before, _ = runtime.observe(batch, Blend(known, 0.5))
    # In place, as a careless copy over a bundle in use does it.
    (copy / "model.onnx").write_bytes(bytes((copy / "model.onnx").stat().st_size))
    after, _ = runtime.observe(batch, Blend(known, 0.5))
    np.testing.assert_array_equal(after, before)


def test_the_memory_of_intermediate_results_is_given_back(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Noting(onnxruntime.InferenceSession):
        def run(self, outputs: Any, inputs: Any, options: Any = None) -> Any:
            asked.append(options.get_run_config_entry("memory.enable_memory_arena_shrinkage"))
            return super().run(outputs, inputs, options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Noting)
    StatisticsRuntime(bundle).under(norm_state()).observe(
        PREPROCESSING(images(2)), Blend(some_statistics(), 0.5)
    )
    assert asked == ["cpu:0"]


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan, np.inf])
@pytest.mark.parametrize("name", ["rate", "share"])
def test_rates_and_shares_that_are_none_are_refused(bundle: Bundle, name: str, value: float) -> None:
    blend = Blend(some_statistics(), 0.5, some_statistics())._replace(**{name: value})
    with pytest.raises(ValueError, match=f"{name}: expected a number from 0 to 1"):
        StatisticsRuntime(bundle).under(norm_state()).observe(PREPROCESSING(images(1)), blend)


def test_a_share_need_not_be_given(bundle: Bundle) -> None:
    """As devices of before do, which do not know of it."""
    session = open_session(
        bundle.statistics_path, {bundle.model_path.name: bundle.model_path.read_bytes()}, threads=1
    )
    batch, known = PREPROCESSING(images(3)), some_statistics(3)
    norm = np.frombuffer(bundle.pack_norm(norm_state()), "<f4")
    feeds = {"input": batch, "norm": norm, "known": known, "rate": np.array(0.5, np.float32)}
    expected = StatisticsRuntime(bundle).under(norm_state()).observe(batch, Blend(known, 0.5))
    for got, right in zip(session.run(["logits", "observed"], feeds), expected, strict=True):
        np.testing.assert_array_equal(got, right)


def test_a_graph_from_before_there_was_a_share_goes_on_without_one(
    bundle: Bundle, key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    old = StatisticsRuntime(observing_bundle(tmp_path / "old", key, old=True)).under(norm_state())
    new, batch = StatisticsRuntime(bundle).under(norm_state()), PREPROCESSING(images(3))
    blend = Blend(some_statistics(3), 0.5, some_statistics(4), 0.0)
    for got, expected in zip(old.observe(batch, blend), new.observe(batch, blend), strict=True):
        np.testing.assert_array_equal(got, expected)
    with pytest.raises(FormatError, match=r"source_share = 0\.25 needs a graph .* export it again, or set"):
        old.observe(batch, blend._replace(share=0.25))


def test_an_empty_batch_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="at least 1 image"):
        StatisticsRuntime(bundle).under(norm_state()).observe(
            np.empty((0, 3, SIDE, SIDE), np.float32), Blend(some_statistics(), 0.5)
        )


def test_known_statistics_that_cannot_be_are_refused(bundle: Bundle) -> None:
    runtime, batch = StatisticsRuntime(bundle).under(norm_state()), PREPROCESSING(images(1))
    negative, missing = some_statistics(), some_statistics()
    negative[1, 3], missing[0, 0] = -1e-3, np.nan
    for bad in (negative, missing, some_statistics()[:, 1:], some_statistics()[0]):
        for blend in (Blend(bad, 0.5), Blend(some_statistics(), 0.5, bad, 0.25)):
            with pytest.raises(FormatError, match="expected"):
                runtime.observe(batch, blend)


def test_parameters_that_do_not_fit_are_refused(bundle: Bundle) -> None:
    state = norm_state()
    for bad in (
        state | {"bn1.scale": np.full(CHANNELS[1], np.nan, np.float32)},
        state | {"bn1.scale": state["bn0.scale"]},
        state | {"bn9.scale": state["bn0.scale"]},
        {"bn0.scale": state["bn0.scale"]},
    ):
        with pytest.raises(FormatError, match="bn"):
            StatisticsRuntime(bundle).under(bad)


def test_a_bundle_without_statistics_is_refused() -> None:
    older = Bundle.load(RECORDED / "bundle")
    with pytest.raises(FormatError, match="expected a bundle with statistics"):
        StatisticsRuntime(older).under(older.affine_state())


@pytest.mark.parametrize("name", ["model.onnx", "statistics.onnx"])
@pytest.mark.parametrize("content", [None, b"", b"not a model"])
def test_files_that_cannot_be_loaded_say_so(
    bundle: Bundle, tmp_path: Path, name: str, content: bytes | None
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(bundle.path, copy)
    damaged = Bundle.load(copy)
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_bytes(content)
    with pytest.raises(FormatError, match=r"again"):
        StatisticsRuntime(damaged).under(norm_state())


@pytest.mark.parametrize("place", [0, 1])
def test_what_is_not_finite_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    """Neither logits nor statistics with NaN or infinity leave."""
    spoil: list[int] = []

    class Spoiling(onnxruntime.InferenceSession):
        def run(self, *args: Any) -> Any:
            results = super().run(*args)
            for which in spoil:
                results[which][0, 0] = np.inf
            return results

    monkeypatch.setattr(onnxruntime, "InferenceSession", Spoiling)
    runtime = StatisticsRuntime(bundle).under(norm_state())
    batch, known = PREPROCESSING(images(2)), some_statistics()
    runtime.observe(batch, Blend(known, 0.5))
    spoil.append(place)
    with pytest.raises(LogitsError, match="finite"):
        runtime.observe(batch, Blend(known, 0.5))


def test_images_beyond_float32_are_refused(bundle: Bundle) -> None:
    runtime = StatisticsRuntime(bundle).under(norm_state())
    with pytest.raises(LogitsError, match="finite"):
        runtime.observe(np.full((2, 3, SIDE, SIDE), 3e38, np.float32), Blend(some_statistics(), 0.5))


def test_a_model_that_gives_other_shapes_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    session = StatisticsRuntime(bundle)
    runtime = session.under(norm_state())
    monkeypatch.setattr(session, "_classes", CLASSES + 1)
    with pytest.raises(LogitsError, match="expected logits of shape"):
        runtime.observe(PREPROCESSING(images(2)), Blend(some_statistics(), 0.5))
