"""The adapter as a whole, on small real models."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import pytest
import torch

from cema.adapt.config import AdaptConfig
from cema.adapt.learner import CemaLearner, StepReport
from cema.errors import FormatError, ImageError, ModelError
from cema.models.norm_state import folded_norm_state, load_folded
from cema.models.spec import Model
from cema.ondevice.batch import Batch
from cema.ondevice.folding import unfold
from cema.ondevice.preprocess import Preprocessing
from cema.ondevice.unsure import ViewSet

Photos = Callable[[int], list[np.ndarray]]
QUICK = AdaptConfig(fresh=8, replayed=12, capacity=40, replay_from=16, window=24, chunk=5)


def ids_adapter(
    edge: Model, foundation: Model, photos: Photos, config: AdaptConfig = QUICK, seed: int = 0
) -> CemaLearner[str]:
    images = {str(i): image for i, image in enumerate(photos(200))}
    return CemaLearner(edge, foundation, config, recall=recalled(images), seed=seed)


def recalled(images: dict[str, np.ndarray]) -> Callable[[Sequence[str]], list[np.ndarray | None]]:
    return lambda items: [images.get(item) for item in items]


def feed(adapter: CemaLearner[str], steps: range) -> list[StepReport]:
    return [adapter.learn([str(8 * step + i) for i in range(8)]) for step in steps]


def assert_same(a: CemaLearner[str], b: CemaLearner[str]) -> None:
    one, other = a.state_dict(), b.state_dict()
    assert one.values == other.values
    assert one.tensors.keys() == other.tensors.keys()
    for key, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[key]), key


def test_steps_report_what_they_did(edge: Model, foundation: Model, photos: Photos) -> None:
    adapter = ids_adapter(edge, foundation, photos)
    reports = feed(adapter, range(4))
    assert [r.step for r in reports] == [1, 2, 3, 4]
    assert [r.fresh for r in reports] == [8] * 4
    assert [r.replayed for r in reports] == [0, 0, 12, 12]  # 16 are stored from the third step on
    assert all(math.isfinite(r.losses["foundation_loss"]) for r in reports)
    for r in reports:
        assert None not in (r.losses["kl"], r.losses["ce"], r.losses["entropy"])
        assert r.losses["distillation_loss"] == pytest.approx(
            r.losses["kl"] + r.losses["ce"] + r.losses["entropy"], rel=1e-5
        )  # type: ignore[operator]
    assert adapter.counters == {"steps": 4, "fresh": 32, "replayed": 24, "dropped": 0, "skipped": 0}


def test_a_batch_may_be_distilled_several_times(edge: Model, foundation: Model, photos: Photos) -> None:
    """As often as asked for, with the answers of one pass of the foundation model, and statistics that follow once."""
    once, thrice = (
        ids_adapter(edge, foundation, photos, msgspec.structs.replace(QUICK, passes=passes))
        for passes in (1, 3)
    )
    one, three = feed(once, range(4))[-1], feed(thrice, range(4))[-1]
    assert (one.step, three.step) == (4, 4)
    assert (one.fresh, three.fresh) == (8, 8)
    assert (one.replayed, three.replayed) == (12, 36)
    # Beside the foundation model on 8 new ones and on the 12 that are asked again: the edge model on 8 + 12.
    assert (one.forwards, one.backwards) == (8 + 12 + 20, 8 + 20)
    assert (three.forwards, three.backwards) == (8 + 12 + 3 * 20, 8 + 3 * 20)
    counts = [learner.edge.statistics.state()[1]["counts"] for learner in (once, thrice)]
    assert counts[0] == counts[1] == [8, 8, 8]


def test_several_passes_go_farther_down(edge: Model, foundation: Model, photos: Photos) -> None:
    images = photos(200)
    losses = []
    for passes in (1, 4):
        config = msgspec.structs.replace(QUICK, passes=passes, edge_lr=1e-2, foundation_lr=0.0, entropy=0.0)
        learner: CemaLearner[np.ndarray] = CemaLearner(edge, foundation, config)
        for start in range(0, 160, 8):
            report = learner.learn(images[start : start + 8])
        losses.append(report.losses["kl"])
    assert losses[1] < 0.9 * losses[0]


def test_what_is_published_may_be_an_average_over_steps(
    edge: Model, foundation: Model, photos: Photos
) -> None:
    """The average in float64, of what a learner without one has after each step; that goes its way as it would."""
    plain = ids_adapter(edge, foundation, photos)
    averaged = ids_adapter(edge, foundation, photos, msgspec.structs.replace(QUICK, average=0.75))
    expected = {name: p.detach().double() for name, p in plain.edge.parameters.items()}
    for step in range(5):
        feed(plain, range(step, step + 1))
        feed(averaged, range(step, step + 1))
        for name, parameter in plain.edge.parameters.items():
            expected[name] = 0.75 * expected[name] + 0.25 * parameter.detach().double()
            assert torch.equal(averaged.edge.parameters[name], parameter)
    published = unfold(averaged.norm_state(), averaged.statistics(), averaged.statistics_layers())
    for key, name in (("scale", "weight"), ("shift", "bias")):
        np.testing.assert_allclose(published[f"bn1.{key}"], expected[f"bn1.{name}"], rtol=1e-4, atol=1e-6)
    device = copy.deepcopy(edge.module)
    load_folded(device, averaged.norm_state())
    images = photos(7)
    with torch.no_grad():
        logits = device(torch.from_numpy(edge.preprocessing(images))).numpy()
    np.testing.assert_allclose(averaged.edge_logits(images), logits, rtol=1e-4, atol=1e-5)


def test_what_is_kept_of_a_domain_is_what_was_published_for_it(
    edge: Model, foundation: Model, photos: Photos
) -> None:
    config = msgspec.structs.replace(QUICK, average=0.75)
    learner, other = (ids_adapter(edge, foundation, photos, config) for _ in range(2))
    feed(learner, range(4))
    feed(other, range(10, 12))
    other.edge.put_norm_vectors(learner.edge.norm_vectors(), 8, parameters=True)
    published = learner.norm_state()
    for key, value in other.norm_state().items():
        np.testing.assert_allclose(value, published[key], rtol=1e-5, atol=1e-7)


def test_an_average_may_be_switched_on_and_off(edge: Model, foundation: Model, photos: Photos) -> None:
    """It begins at the parameters as they are then; a checkpoint that has one serves a learner without."""
    on = msgspec.structs.replace(QUICK, average=0.75)
    for before, after in ((QUICK, on), (on, QUICK)):
        learner = ids_adapter(edge, foundation, photos, before)
        feed(learner, range(3))
        other = ids_adapter(edge, foundation, photos, after)
        other.loads(learner.dumps())
        for name, parameter in learner.edge.parameters.items():
            assert torch.equal(other.edge.parameters[name], parameter)
        state = folded_norm_state(learner.edge.module, learner.edge.norm_layers)
        for key, value in other.norm_state().items():
            np.testing.assert_array_equal(value, state[key])


def test_answers_may_be_averaged_over_views(edge: Model, foundation: Model, photos: Photos) -> None:
    """What new uploads are taught is the mean probability of views, in float64, asked of the foundation model once."""
    config = msgspec.structs.replace(
        QUICK, views=ViewSet(count=3, shift=2), foundation_lr=0.0, statistics="source"
    )
    learner = ids_adapter(edge, foundation, photos, config)
    report = feed(learner, range(1))[0]
    assert report.forwards == 3 * 8 + 8
    pixels = torch.from_numpy(foundation.preprocessing(photos(200)[:8])).double()
    module = copy.deepcopy(foundation.module).double().eval()
    width = pixels.shape[3]
    places = [torch.arange(width), torch.arange(width) - 2, torch.arange(width) + 2]
    views = [pixels[:, :, :, place.clamp(0, width - 1)] for place in places]
    with torch.no_grad():
        mean = torch.stack([module(view).softmax(dim=1) for view in views]).mean(dim=0)
    kept = learner._taught.targets.get(learner.replay_buffer.items())
    np.testing.assert_allclose(kept.softmax(dim=1), mean, rtol=0.01, atol=1e-3)  # kept as float16


def test_statistics_are_those_of_the_norm_state(edge: Model, foundation: Model, photos: Photos) -> None:
    learner = ids_adapter(edge, foundation, photos)
    feed(learner, range(3))
    layers, statistics = learner.statistics_layers(), learner.statistics()
    affine = unfold(learner.norm_state(), statistics, layers)
    np.testing.assert_allclose(
        affine["bn1.scale"], learner.edge.layers["bn1"].weight.detach().numpy(), rtol=1e-5
    )
    np.testing.assert_allclose(
        affine["bn1.shift"], learner.edge.layers["bn1"].bias.detach().numpy(), atol=1e-5
    )
    assert statistics.shape == (2, sum(layer.size for layer in layers))
    np.testing.assert_array_equal(statistics, learner.edge.statistics.running().numpy())


def test_a_share_of_the_source_models_statistics_stays(
    edge: Model, foundation: Model, photos: Photos
) -> None:
    still = msgspec.structs.replace(QUICK, edge_lr=0.0, foundation_lr=0.0)
    plain, shared = (
        ids_adapter(edge, foundation, photos, msgspec.structs.replace(still, source_share=share))
        for share in (0.0, 0.25)
    )
    source = shared.statistics()
    for learner in (plain, shared):
        feed(learner, range(4))
    # The first layer is given the same inputs by both; deeper ones see what the layers before make of theirs.
    first = slice(0, shared.statistics_layers()[0].size)
    expected = 0.75 * plain.statistics()[:, first] + 0.25 * source[:, first]
    np.testing.assert_allclose(shared.statistics()[:, first], expected, rtol=1e-4, atol=1e-6)
    assert not np.allclose(shared.statistics(), 0.75 * plain.statistics() + 0.25 * source, rtol=1e-3)


def test_only_norm_state_changes_and_the_source_models_never_do(
    edge: Model, foundation: Model, photos: Photos
) -> None:
    sources = [copy.deepcopy(m.module.state_dict()) for m in (edge, foundation)]
    adapter = ids_adapter(edge, foundation, photos)
    feed(adapter, range(4))
    for model, source, adapted in zip(
        (edge, foundation), sources, (adapter.edge, adapter.foundation), strict=True
    ):
        assert all(torch.equal(value, source[key]) for key, value in model.module.state_dict().items())
        norm = set(adapted.parameters)
        norm |= {f"{name}.{key}" for name in adapted.layers for key in ("running_mean", "running_var")}
        for key, value in adapted.module.state_dict().items():
            assert torch.equal(value, source[key]) is (key not in norm), key
        assert not any(m.training for m in adapted.module.modules())


def test_what_is_published_is_what_the_adapter_predicts(
    edge: Model, foundation: Model, photos: Photos
) -> None:
    adapter = ids_adapter(edge, foundation, photos)
    feed(adapter, range(3))
    state = adapter.norm_state()
    assert state.keys() == folded_norm_state(edge.module).keys()
    assert all(value.dtype == np.float32 and value.ndim == 1 for value in state.values())
    device = copy.deepcopy(edge.module)
    load_folded(device, state)
    images = photos(7)
    with torch.no_grad():
        expected = device(torch.from_numpy(edge.preprocessing(images))).numpy()
    np.testing.assert_allclose(adapter.edge_logits(images), expected, rtol=1e-4, atol=1e-5)
    assert adapter.edge_logits(images).dtype == np.float32
    assert adapter.foundation_logits([]).shape == (0, 4)


def test_learning_lowers_the_loss_it_descends(edge: Model, foundation: Model, photos: Photos) -> None:
    config = AdaptConfig(fresh=16, capacity=0, edge_lr=1e-2, foundation_lr=0.0)
    adapter: CemaLearner[np.ndarray] = CemaLearner(edge, foundation, config)
    images = photos(16)
    losses = [adapter.learn(images).losses["distillation_loss"] for _ in range(20)]
    assert losses[0] is not None
    assert losses[-1] is not None
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("statistics", ["window", "fresh", "step"])
def test_dumps_and_loads_continue_bit_for_bit(
    statistics: str, edge: Model, foundation: Model, photos: Photos
) -> None:
    config = AdaptConfig(
        fresh=8,
        replayed=12,
        capacity=20,
        replay_from=16,
        window=16,
        average=0.75,
        statistics=statistics,  # type: ignore[arg-type]
    )
    straight = ids_adapter(edge, foundation, photos, config)
    feed(straight, range(4))
    data = straight.dumps()
    resumed = ids_adapter(edge, foundation, photos, config, seed=99)
    resumed.loads(data)
    assert resumed.dumps() == data
    assert feed(straight, range(4, 6)) == feed(resumed, range(4, 6))
    assert straight.replay() == resumed.replay()
    assert_same(straight, resumed)


def test_a_fresh_adapters_state_resumes_too(edge: Model, foundation: Model, photos: Photos) -> None:
    data = ids_adapter(edge, foundation, photos, seed=3).dumps()
    resumed, straight = (ids_adapter(edge, foundation, photos, seed=s) for s in (4, 3))
    feed(resumed, range(3))
    resumed.loads(data)
    feed(resumed, range(3))
    feed(straight, range(3))
    assert_same(straight, resumed)


def test_the_same_seed_gives_the_same_state_and_another_seed_another(
    edge: Model, foundation: Model, photos: Photos
) -> None:
    adapters = [ids_adapter(edge, foundation, photos, seed=s) for s in (5, 5, 6)]
    for adapter in adapters:
        feed(adapter, range(4))
    assert adapters[0].dumps() == adapters[1].dumps()
    assert adapters[0].dumps() != adapters[2].dumps()


def test_states_that_do_not_fit_are_refused_and_change_nothing(
    edge: Model, foundation: Model, photos: Photos
) -> None:
    adapter = ids_adapter(edge, foundation, photos)
    feed(adapter, range(3))
    before = adapter.dumps()
    other = ids_adapter(foundation, edge, photos)
    with pytest.raises(FormatError, match="another edge model"):
        other.loads(before)
    for broken in (b"", b"not safetensors at all", before[:200], before[:-1]):
        with pytest.raises(FormatError):
            adapter.loads(broken)
    good = adapter.state_dict()
    name = "edge.parameter.bn1.weight"
    for tensors in (
        {key: t for key, t in good.tensors.items() if key != name},
        good.tensors | {"edge.unknown": torch.zeros(1)},
        good.tensors | {name: torch.zeros(3)},
        good.tensors | {name: torch.full_like(good.tensors[name], math.nan)},
    ):
        with pytest.raises(FormatError):
            adapter.load_state_dict(good._replace(tensors=tensors))
    for values in ({}, {**good.values, "format": "x"}, {k: v for k, v in good.values.items() if k != "rng"}):
        with pytest.raises(FormatError):
            adapter.load_state_dict(good._replace(values=values))
    assert adapter.dumps() == before


def test_items_without_an_image_are_dropped(edge: Model, foundation: Model, photos: Photos) -> None:
    images = {str(i): image for i, image in enumerate(photos(64))}
    adapter: CemaLearner[str] = CemaLearner(edge, foundation, QUICK, recall=recalled(images))
    with pytest.raises(ValueError, match="2 items and 1 images"):
        adapter.learn(["0", "lost"], Batch(photos(1)))
    feed(adapter, range(3))
    for i in range(24):
        del images[str(i)]
    report = adapter.learn([str(i) for i in range(24, 32)])
    assert (report.replayed, report.dropped) == (0, 12)  # a draw of 12, all of them gone
    assert adapter.replayable == 12 + 8


def test_a_partial_step_replays_in_proportion(edge: Model, foundation: Model, photos: Photos) -> None:
    adapter = ids_adapter(edge, foundation, photos)
    feed(adapter, range(2))
    report = adapter.learn(["100", "101"])
    assert (report.fresh, report.replayed) == (2, 3)


def test_replay_steps_need_a_filled_buffer_and_learn(edge: Model, foundation: Model, photos: Photos) -> None:
    adapter = ids_adapter(edge, foundation, photos)
    feed(adapter, range(1))
    assert adapter.replay() == StepReport()
    feed(adapter, range(1, 3))
    before = adapter.state_dict().tensors
    report = adapter.replay()
    after = adapter.state_dict().tensors
    assert (report.step, report.fresh, report.replayed) == (4, 0, 20)
    assert "foundation_loss" not in report.losses
    assert not torch.equal(before["edge.parameter.bn1.weight"], after["edge.parameter.bn1.weight"])
    same = [k for k in before if k.startswith("foundation.") or ".running_" in k]
    assert all(torch.equal(before[key], after[key]) for key in same)


def test_one_sample_is_learned_without_batch_statistics(
    edge: Model, foundation: Model, photos: Photos
) -> None:
    adapter = ids_adapter(edge, foundation, photos)
    report = adapter.learn(["0"])
    assert (report.step, report.skipped) == (1, 0)
    assert np.isfinite(adapter.edge_logits(photos(3))).all()


def test_wrong_images_and_empty_batches_leave_everything_as_it_was(
    edge: Model, foundation: Model, photos: Photos
) -> None:
    adapter: CemaLearner[np.ndarray] = CemaLearner(edge, foundation, QUICK)
    before = adapter.dumps()
    with pytest.raises(ImageError):
        adapter.learn([*photos(3), np.zeros((8, 8, 3), np.float32)])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="at least one item"):
        adapter.learn([])
    assert adapter.dumps() == before
    adapter.learn(photos(8))
    with pytest.raises(TypeError, match="ids"):
        adapter.dumps()


def test_a_gradient_that_is_not_finite_moves_no_parameter(
    edge: Model, foundation: Model, photos: Photos
) -> None:
    adapter: CemaLearner[np.ndarray] = CemaLearner(edge, foundation, AdaptConfig(statistics="source"))
    before = adapter.norm_state()
    # Logits past float32: the losses are NaN.
    for model in (adapter.edge, adapter.foundation):
        with torch.no_grad():
            model.module.head.bias.fill_(math.inf)  # type: ignore[union-attr]
    assert adapter.learn(photos(8)).skipped == 2
    after = adapter.norm_state()
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_the_edge_and_the_foundation_may_want_other_pixels(
    edge: Model, foundation: Model, photos: Photos
) -> None:
    other = Preprocessing(height=12, width=12, channels=3, mean=(0.0,) * 3, std=(255.0,) * 3)
    larger = Model(name="larger", module=foundation.module, preprocessing=other, classes=foundation.classes)
    assert ids_adapter(edge, larger, photos).learn(["0", "1", "2"]).step == 1


def test_pairs_and_settings_that_make_no_sense_are_refused(edge: Model, foundation: Model) -> None:
    five = Model(name="five", module=foundation.module, preprocessing=foundation.preprocessing, classes=5)
    with pytest.raises(ModelError, match="same classes"):
        CemaLearner(edge, five)
    with pytest.raises(ValueError, match="dtype"):
        CemaLearner(edge, foundation, dtype="float16")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="device"):
        CemaLearner(edge, foundation, device="no-such-device")


def test_bfloat16_keeps_the_state_in_float32_and_learns_much_the_same(
    edge: Model, foundation: Model, photos: Photos
) -> None:
    config = AdaptConfig(fresh=16, capacity=0)
    plain: CemaLearner[np.ndarray] = CemaLearner(edge, foundation, config)
    half: CemaLearner[np.ndarray] = CemaLearner(edge, foundation, config, dtype="bfloat16")
    images = photos(16)
    reports = [adapter.learn(images) for adapter in (plain, half)]
    assert reports[1].losses["distillation_loss"] == pytest.approx(
        reports[0].losses["distillation_loss"], rel=0.1
    )
    assert {t.dtype for t in half.state_dict().tensors.values()} == {torch.float32}
    one, other = plain.norm_state(), half.norm_state()
    assert all(np.allclose(one[key], other[key], atol=0.05, rtol=0.05) for key in one)


def test_checkpointing_changes_memory_not_results(edge: Model, foundation: Model, photos: Photos) -> None:
    adapters = [
        ids_adapter(edge, foundation, photos, AdaptConfig(fresh=8, capacity=0, checkpoint=flag))
        for flag in (False, True)
    ]
    for adapter in adapters:
        feed(adapter, range(2))
    assert_same(*adapters)


def test_after_a_change_of_the_environment_only_newer_samples_are_replayed(
    edge: Model, foundation: Model, photos: Photos
) -> None:
    day = photos(40)
    night = [image // 8 for image in photos(27)]
    images = {f"day {i}": image for i, image in enumerate(day)}
    images |= {f"night {i}": image for i, image in enumerate(night)}
    seen: list[str] = []

    def decode(name: str) -> np.ndarray:
        seen.append(name)
        return images[name]

    adapter: CemaLearner[str] = CemaLearner(
        edge, foundation, QUICK, recall=lambda items: [decode(item) for item in items]
    )
    reports = [adapter.learn([f"day {8 * k + i}" for i in range(8)]) for k in range(5)]
    assert adapter.changes.changes == 0
    assert [r.replayed for r in reports] == [0, 0, 12, 12, 12]
    seen.clear()
    # What shows the change has samples of both; the second batch is the first of the new domain alone.
    both = [f"day {i}" for i in range(5)] + [f"night {i}" for i in range(3)]
    reports = [adapter.learn(both)]
    reports += [adapter.learn([f"night {8 * k + i + 3}" for i in range(8)]) for k in range(3)]
    assert adapter.changes.changes == 1
    assert [r.replayed for r in reports] == [0, 0, 8, 12]
    assert [seen.count(name) for name in both] == [1] * 8, "as new samples, and never again"
    assert not any(name.startswith("day") for name in seen if name not in both)


@pytest.mark.parametrize("on_change", ["keep", "reset"])
def test_a_change_may_put_the_source_parameters_back(
    on_change: str, edge: Model, foundation: Model, photos: Photos
) -> None:
    """At the batch that shows it, and at the next: the first may hold samples of both domains."""
    config = AdaptConfig(
        fresh=8,
        capacity=0,
        window=24,
        edge_lr=0.0,
        on_change=on_change,  # type: ignore[arg-type]
    )
    adapter: CemaLearner[np.ndarray] = CemaLearner(edge, foundation, config)
    night = [image // 8 for image in photos(32)]
    for k in range(4):
        adapter.learn(photos(32)[8 * k : 8 * k + 8])
    for k, put_back in enumerate((True, True, False)):
        with torch.no_grad():
            adapter.edge.parameters["ln.bias"].fill_(7.0)  # as if learned; the edge's own rate is 0
        adapter.learn(night[8 * k : 8 * k + 8])
        assert adapter.changes.changes == 1
        source = put_back and on_change == "reset"
        expected = edge.module.ln.bias if source else torch.full((8,), 7.0)
        assert torch.equal(adapter.edge.parameters["ln.bias"], expected)
    assert adapter.since_change == 24
