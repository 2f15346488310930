"""CEMA over a stream: selection, link, learning and publication, on small models and on the shipped digits pair."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from cema.adapt.config import AdaptConfig
from cema.adapt.learner import CemaLearner
from cema.data.corruptions import corrupt_images
from cema.data.digits import load_digits
from cema.errors import ConfigError, ModelError
from cema.formats.image import CodecConfig, decode_image, encode_image
from cema.formats.payload import decode_payload, encode_payload
from cema.methods.base import MethodContext, NotApplicable
from cema.methods.cema import Cema, CemaConfig, paper_defaults, reference_defaults
from cema.methods.registry import make_adapter
from cema.models.norm_state import load_folded
from cema.models.registry import resolve
from cema.models.spec import Model
from cema.ondevice.own_statistics import StatisticsConfig
from cema.ondevice.selection.config import SelectionConfig
from cema.ondevice.selection.entropy import softmax_entropy
from cema.ondevice.selection.entropy_band import EntropyBand

Photos = Callable[[int], list[np.ndarray]]
QUICK = AdaptConfig(fresh=8, replayed=8, capacity=64, replay_from=16, window=24)
# Everything is selected, so that small random models have something to learn from; no guard unless it is tested.
EAGER = CemaConfig(
    adapt=QUICK,
    e_min=0.0,
    e_max=1.0,
    group=1000,
    guard=0.0,
    statistics=StatisticsConfig(source="update"),
)


@pytest.fixture
def edge(edge: Model, photos: Photos) -> Model:
    """The small edge model with logits around zero and wide enough for its entropies to differ."""
    head: Any = edge.module.head
    with torch.no_grad():
        usual = torch.from_numpy(predict(edge, None, photos(64)).mean(0))
        head.bias.sub_(usual).mul_(150.0)
        head.weight.mul_(150.0)
    return edge


def stream(photos: Photos, batches: int, size: int = 8) -> list[list[np.ndarray]]:
    images = photos(batches * size)
    return [images[i : i + size] for i in range(0, len(images), size)]


def predict(
    model: Model, norm_state: dict[str, np.ndarray] | None, images: Sequence[np.ndarray]
) -> np.ndarray:
    module = copy.deepcopy(model.module).eval()
    if norm_state is not None:
        load_folded(module, norm_state)
    with torch.no_grad():
        logits: np.ndarray = module(torch.from_numpy(model.preprocessing(images))).numpy()
    return logits


@pytest.mark.parametrize("delay", [0, 2])
def test_a_stream_is_edge_link_cloud_and_update_put_together(
    edge: Model, foundation: Model, photos: Photos, delay: int
) -> None:
    config = msgspec.structs.replace(EAGER, delay=delay, e_max=0.7, group=8)
    codec = CodecConfig(codec="jpeg", quality=60)
    cema = Cema(edge, config, context=MethodContext(foundation=foundation, seed=3, codec=codec))
    # The same from its parts, as a device and a service have them.
    selector = EntropyBand(edge.classes, SelectionConfig(e_min=0.0, e_max=0.7, group=8))
    cloud: CemaLearner[np.ndarray] = CemaLearner(edge, foundation, QUICK, seed=3)
    waiting: list[np.ndarray] = []
    published: list[dict[str, np.ndarray] | None] = [None] * (delay + 1)
    running = None
    golden = np.zeros((1, edge.classes), np.float32)
    for images in stream(photos, 8):
        outcome = cema.step(images)
        running = published.pop(0) or running
        logits = predict(edge, running, images)
        np.testing.assert_allclose(outcome.logits, logits, rtol=1e-3, atol=1e-4)
        selected = selector.decide(softmax_entropy(outcome.logits))
        encoded = [encode_image(images[i], codec) for i in np.flatnonzero(selected)]
        assert (outcome.uploads, outcome.bytes_up) == (len(encoded), sum(map(len, encoded)))
        waiting += [decode_image(data) for data in encoded]
        changed = len(waiting) >= 8
        while len(waiting) >= 8:
            cloud.learn(waiting[:8])
            del waiting[:8]
        payload = encode_payload(cloud.norm_state(), golden)
        published.append(decode_payload(payload).norm_state if changed else None)
    assert 2 < cloud.counters["steps"] < 8
    np.testing.assert_array_equal(cema.learner.edge_logits(photos(4)), cloud.edge_logits(photos(4)))


def test_an_update_arrives_after_its_delay(edge: Model, foundation: Model, photos: Photos) -> None:
    for delay in (0, 1, 3):
        config = msgspec.structs.replace(EAGER, delay=delay)
        cema = Cema(edge, config, context=MethodContext(foundation=foundation))
        changed = []
        for images in stream(photos, 6):
            answers = cema.step(images).logits
            changed.append(not np.allclose(answers, predict(edge, None, images), atol=1e-3))
        assert changed == [i > delay for i in range(6)]


def test_costs_count_what_passes_through_networks(edge: Model, foundation: Model, photos: Photos) -> None:
    cema = Cema(edge, EAGER, context=MethodContext(foundation=foundation))
    outcomes = [cema.step(images) for images in stream(photos, 4)]
    # Predicted 8; the foundation model on 8, the edge model on 8 or 8 + 8, and targets made again for those replayed.
    assert [o.forwards for o in outcomes] == [8 + 8 + 8, 24, 40, 40]
    assert [o.backwards for o in outcomes] == [8 + 8, 16, 24, 24]
    nothing = msgspec.structs.replace(EAGER, e_min=0.999, e_max=1.0)
    outcome = Cema(edge, nothing, context=MethodContext(foundation=foundation)).step(photos(8))
    assert (outcome.uploads, outcome.bytes_up, outcome.forwards, outcome.backwards) == (0, 0, 8, 0)


def test_a_batch_without_a_full_step_may_be_followed_by_replay(
    edge: Model, foundation: Model, photos: Photos
) -> None:
    for replay_steps in (False, True):
        config = msgspec.structs.replace(EAGER, replay_steps=replay_steps)
        cema = Cema(edge, config, context=MethodContext(foundation=foundation))
        for images in stream(photos, 2):
            cema.step(images)
        cema.step(photos(3))
        assert cema.learner.steps == 2 + replay_steps


def test_several_edges_feed_one_cohort_and_select_by_themselves(
    edge: Model, foundation: Model, photos: Photos
) -> None:
    config = msgspec.structs.replace(EAGER, e_max=0.7, group=8)
    cema = Cema(edge, config, context=MethodContext(foundation=foundation, edges=2))
    batches = stream(photos, 6)
    selectors = [EntropyBand(edge.classes, SelectionConfig(e_min=0.0, e_max=0.7, group=8)) for _ in range(2)]
    uploads = 0
    for i, images in enumerate(batches):
        outcome = cema.step(images, edge=i % 2)
        selected = selectors[i % 2].decide(softmax_entropy(outcome.logits))
        assert outcome.uploads == selected.sum()
        uploads += outcome.uploads
    assert cema.uplink.samples == uploads
    assert cema.learner.counters["fresh"] == uploads // 8 * 8
    # What one edge taught serves the other.
    assert not np.allclose(cema.step(batches[0], edge=1).logits, predict(edge, None, batches[0]), atol=1e-3)
    for wrong in (2, -1):
        with pytest.raises(ConfigError, match="edge from 0 to 1"):
            cema.step(batches[0], edge=wrong)


def test_the_guard_goes_back_to_the_source_where_inputs_change(
    edge: Model, foundation: Model, photos: Photos
) -> None:
    dark = [[image // 4 for image in images] for images in stream(photos, 4, 32)]
    bright = [255 - image // 4 for image in photos(32)]
    context = MethodContext(foundation=foundation, edges=2)
    # The update is late, so that nothing learned from the bright images is there yet to go back to.
    config = msgspec.structs.replace(EAGER, guard=36.0, delay=1)
    guarded, careless = (
        Cema(edge, c, context=context) for c in (config, msgspec.structs.replace(config, guard=0.0))
    )
    for images in dark:
        guarded.step(images)
        careless.step(images)
    assert guarded.drifted == (False, False)
    source = predict(edge, None, bright)
    np.testing.assert_allclose(guarded.step(bright).logits, source, rtol=1e-4, atol=1e-5)
    assert guarded.drifted == (True, False)
    assert not np.allclose(careless.step(bright).logits, source, atol=1e-3)
    # The other edge has stayed in the dark.
    assert not np.allclose(guarded.step(dark[0], edge=1).logits, predict(edge, None, dark[0]), atol=1e-3)
    # Updates that were made from the bright images go with them.
    for _ in range(3):
        guarded.step(bright)
    assert not guarded.drifted[0]


def test_a_budget_is_kept_and_its_burst_begins_again_where_the_guard_acts(
    edge: Model, foundation: Model, photos: Photos
) -> None:
    dark = [[image // 4 for image in images] for images in stream(photos, 4, 32)]
    bright = [255 - image // 4 for image in photos(32)]
    uploads = {}
    for guard in (0.0, 36.0):
        config = CemaConfig(
            adapt=QUICK,
            guard=guard,
            change_limit=0.0,
            rule="budget",
            options={"share": 0.25, "order": "entropy", "burst": 2.0, "burst_for": 32},
        )
        cema = Cema(edge, config, context=MethodContext(foundation=foundation))
        counts = [cema.step(images).uploads for images in dark]
        assert counts[0] <= 16
        assert sum(counts) <= 16 + 3 * 8
        uploads[guard] = cema.step(bright).uploads
        assert cema.drifted == (guard > 0,)
    assert uploads[0.0] <= 10
    assert 15 <= uploads[36.0] <= 17


def test_the_same_stream_gives_the_same_answers(edge: Model, foundation: Model, photos: Photos) -> None:
    runs = [Cema(edge, EAGER, context=MethodContext(foundation=foundation, seed=s)) for s in (1, 1, 2)]
    for images in stream(photos, 8):
        first, same, other = (run.step(images).logits for run in runs)
        np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)  # other samples were replayed


def test_models_are_copied_and_a_last_batch_of_one_image_is_answered(
    edge: Model, foundation: Model, photos: Photos
) -> None:
    sources = [copy.deepcopy(m.module.state_dict()) for m in (edge, foundation)]
    cema = Cema(edge, EAGER, context=MethodContext(foundation=foundation))
    for images in [*stream(photos, 3), photos(1)]:
        assert np.isfinite(cema.step(images).logits).all()
    for model, source in zip((edge, foundation), sources, strict=True):
        assert all(torch.equal(value, source[key]) for key, value in model.module.state_dict().items())


def test_what_cannot_be_is_refused(edge: Model, foundation: Model) -> None:
    with pytest.raises(NotApplicable, match="--foundation"):
        Cema(edge, context=MethodContext())
    with pytest.raises(ModelError, match="classes"):
        Cema(edge, context=MethodContext(foundation=resolve("digits-cnn-foundation")))
    for settings in ({"delay": -1}, {"guard": -1.0}, {"group": 0}, {"e_min": 0.5, "e_max": 0.4}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            CemaConfig(**settings)  # type: ignore[arg-type]


def test_the_reference_is_without_what_this_project_added() -> None:
    config = reference_defaults()
    adapt = config.adapt
    assert (config.guard, adapt.change_limit) == (0.0, 0.0)
    assert (adapt.preset, adapt.statistics, adapt.replay_scope) == ("reference", "step", "all")


def test_the_paper_is_without_what_this_project_added() -> None:
    config = paper_defaults()
    adapt = config.adapt
    assert (config.guard, config.change_limit, config.floor, adapt.change_limit) == (0.0, 0.0, 0.0, 0.0)
    assert (config.statistics.source, config.views.count, config.recentre.mode) == ("update", 1, "off")
    assert (adapt.preset, adapt.replay_scope, adapt.replayed, adapt.passes) == ("poster", "all", 96, 1)
    # Both of the paper's thresholds, and no second filter.
    assert (config.e_min, config.e_max, config.d_margin) == (0.02, 0.4, 0.0)


def test_the_reference_answers_its_first_batch_as_bn_does(
    edge: Model, foundation: Model, photos: Photos
) -> None:
    context = MethodContext(foundation=foundation)
    images = photos(12)
    expected = make_adapter("bn", edge).step(images).logits
    cema = Cema(edge, reference_defaults(), context=context)
    # The update's numbers are rounded to float16; and a batch's variance is unbiased in running statistics.
    np.testing.assert_allclose(cema.step(images).logits, expected, rtol=0.05, atol=0.05)
    again = Cema(edge, CemaConfig(statistics=StatisticsConfig(source="update")), context=context)
    np.testing.assert_allclose(again.step(images).logits, predict(edge, None, images), rtol=1e-3, atol=1e-4)


def test_statistics_of_a_prediction_want_those_of_every_step() -> None:
    with pytest.raises(ValueError, match="first_inferred: expected false unless"):
        CemaConfig(first_inferred=True)


def reference_selection(batches: list[np.ndarray], margin: float) -> list[np.ndarray]:
    """Select as the authors' program does, from scratch, in float64: fixed threshold, then cosine filter."""
    average = None
    chosen = []
    for logits in batches:
        z = logits.astype(np.float64)
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        keep = np.flatnonzero(-(p * np.log(p + 1e-300)).sum(1) < 0.4 * np.log(p.shape[1]))
        if average is not None:
            lengths = np.linalg.norm(p[keep], axis=1) * np.linalg.norm(average)
            keep = keep[np.abs(p[keep] @ average) / lengths < margin]
        if len(keep):
            mean = p[keep].mean(0)
            average = mean if average is None else 0.9 * average + 0.1 * mean
        chosen.append(keep)
    return chosen


# The shipped pair.


@pytest.fixture(scope="module")
def noisy() -> tuple[list[np.ndarray], np.ndarray]:
    digits = load_digits()
    images = corrupt_images(list(digits.test_images[:600]), "gaussian_noise", 4, seed=0)
    return images, digits.test_labels[:600]


@pytest.mark.parametrize("defaults", [CemaConfig, paper_defaults, reference_defaults])
def test_on_noisy_digits_it_clearly_beats_the_source(noisy: Any, defaults: Callable[[], CemaConfig]) -> None:
    images, labels = noisy
    edge, foundation = resolve("digits-cnn"), resolve("digits-cnn-foundation")
    config = msgspec.structs.replace(defaults(), **({"d_margin": 0.4} if defaults().d_margin else {}))
    cema = Cema(edge, config, context=MethodContext(foundation=foundation))
    selector = EntropyBand(10, SelectionConfig(group=64))
    right = uploads = bytes_up = 0
    seen: list[np.ndarray] = []
    for i in range(0, 600, 64):
        outcome = cema.step(images[i : i + 64])
        right += int((outcome.logits.argmax(1) == labels[i : i + 64]).sum())
        seen.append(outcome.logits)
        selected = np.flatnonzero(selector.decide(softmax_entropy(outcome.logits)))
        if config.d_margin:
            selected = reference_selection(seen, config.d_margin)[-1]
        assert outcome.uploads == len(selected)
        sizes = [len(encode_image(images[i + j], CodecConfig())) for j in selected]
        assert outcome.bytes_up == sum(sizes)
        uploads, bytes_up = uploads + outcome.uploads, bytes_up + outcome.bytes_up
    source = int((predict(edge, None, images).argmax(1) == labels).sum())
    assert right > source + 90  # 15 points
    assert 0.2 * 600 < uploads < 0.9 * 600
    assert (cema.uplink.samples, cema.uplink.bytes) == (uploads, bytes_up)
