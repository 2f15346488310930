from __future__ import annotations

import numpy as np
import pytest
from edge_support import CLASSES, images, norm_state, reference

from cema.edge.runtime import Runtime, build_runtime
from cema.errors import FormatError, LogitsError
from cema.formats.bundle import Bundle


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
