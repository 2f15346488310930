"""What was learned for a domain, kept and put back when the domain comes again."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from cema.adapt.bank import Entry, NormBank, Spread
from cema.adapt.checkpoint import State
from cema.adapt.config import AdaptConfig
from cema.adapt.learner import CemaLearner
from cema.adapt.trainable import TrainableModel
from cema.errors import FormatError
from cema.models.spec import Model
from cema.ondevice.batch import Batch
from cema.testing.networks import small_model

Photos = Callable[[int], list[np.ndarray]]
FRESH, SIZE = 16, 10
CONFIG = AdaptConfig(
    fresh=FRESH,
    replayed=12,
    capacity=400,
    replay_from=16,
    window=48,
    bank=3,
    bank_limit=2.5,
    bank_parameters="both",
)


def rows(n: int, seed: int, shift: float = 0.0, size: int = SIZE) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(n, size)) + shift).astype(np.float32)


def make(config: AdaptConfig = CONFIG) -> tuple[NormBank, dict[str, TrainableModel]]:
    models = {
        side: TrainableModel(small_model(seed), config, 0.01, device="cpu", dtype="float32")
        for seed, side in enumerate(("edge", "foundation"))
    }
    return NormBank(models, config), models


def set_to(models: dict[str, TrainableModel], value: float) -> None:
    with torch.no_grad():
        for model in models.values():
            for parameter in model.parameters.values():
                parameter.fill_(value)
            for layer in model.layers.values():
                layer.running_mean.fill_(value)


def value_of(models: dict[str, TrainableModel]) -> set[float]:
    return {v for model in models.values() for p in model.parameters.values() for v in p.flatten().tolist()}


def visit(bank: NormBank, models: dict[str, TrainableModel], value: float, seed: int, shift: float) -> None:
    set_to(models, value)
    bank.learn_from(3 * FRESH)
    bank.leave(rows(48, seed, shift))


# -- Spread


@pytest.mark.parametrize("shift", [0.0, 0.3, 2.0])
def test_the_distance_is_bhattacharyyas(shift: float) -> None:
    """Against the integral over sqrt(p q), by sampling from the normal distribution in the middle."""
    one, other = rows(60, 1, size=2), 1.5 * rows(60, 2, shift, size=2)
    a, b = Spread.of(one), Spread.of(other)
    p, q = (multivariate_normal(s.mean, s.covariance) for s in (a, b))
    middle = multivariate_normal(0.5 * (a.mean + b.mean), 2 * (a.covariance + b.covariance))
    x = middle.rvs(200_000, random_state=0)
    overlap = float(np.mean(np.exp(0.5 * (p.logpdf(x) + q.logpdf(x)) - middle.logpdf(x))))
    assert a.distance(b) == pytest.approx(-math.log(overlap), abs=0.02)
    assert a.distance(b) == pytest.approx(b.distance(a))
    assert a.distance(a) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(("count", "size"), [(24, 10), (32, 10), (32, 8), (96, 8)])
def test_two_samples_of_one_domain_are_about_1_unlike(count: int, size: int) -> None:
    pairs = [(rows(count, seed, size=size), rows(96, 1000 + seed, size=size)) for seed in range(300)]
    found = [Spread.of(one).unlike(Spread.of(other)) for one, other in pairs]
    assert np.median(found) == pytest.approx(1.0, abs=0.15)
    assert np.quantile(found, 0.98) < AdaptConfig().bank_limit


# -- NormBank


def test_what_was_learned_comes_back_with_its_domain_and_without_momentum() -> None:
    bank, models = make()
    visit(bank, models, 5.0, 0, 0.0)
    visit(bank, models, 6.0, 1, 9.0)
    set_to(models, 7.0)
    for model in models.values():
        first = next(iter(model.parameters.values()))
        model.optimizer.state[first] = {"momentum_buffer": torch.ones_like(first)}
    found = bank.enter(rows(FRESH, 2, 0.0))
    assert found is not None
    assert found.other
    assert found.entry.learned == 3 * FRESH
    assert value_of(models) == {5.0}
    for model in models.values():
        assert not model.optimizer.state
        assert all((layer.running_mean == 5.0).all() for layer in model.layers.values())
    assert bank.enter(rows(FRESH, 3, 9.0)) is not None
    assert value_of(models) == {6.0}


def test_the_edge_model_may_keep_its_parameters() -> None:
    bank, models = make(msgspec.structs.replace(CONFIG, bank_parameters="foundation"))
    visit(bank, models, 5.0, 0, 0.0)
    set_to(models, 7.0)
    found = bank.enter(rows(FRESH, 2, 0.0))
    assert found is not None
    assert found.other
    assert value_of({"edge": models["edge"]}) == {7.0}
    assert value_of({"foundation": models["foundation"]}) == {5.0}
    for model in models.values():
        assert all((layer.running_mean == 5.0).all() for layer in model.layers.values())


def test_what_is_as_in_the_source_model_takes_no_room_and_comes_back_too() -> None:
    bank, models = make()
    source = {side: model.norm_vectors() for side, model in models.items()}
    assert source == {"edge": {}, "foundation": {}}
    before = models["foundation"].state().tensors
    bank.learn_from(3 * FRESH)
    bank.leave(rows(48, 0))
    assert bank.entries[0].vectors == {}
    set_to(models, 7.0)
    assert bank.enter(rows(FRESH, 2)) is not None
    after = models["foundation"].state().tensors
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


def test_a_batch_of_two_domains_and_one_of_an_unknown_domain_are_like_none() -> None:
    bank, models = make()
    visit(bank, models, 5.0, 0, 0.0)
    visit(bank, models, 6.0, 1, 9.0)
    set_to(models, 7.0)
    assert bank.enter(np.concatenate([rows(8, 2, 0.0), rows(8, 3, 9.0)])) is None
    assert bank.enter(rows(FRESH, 4, 30.0)) is None
    assert bank.enter(rows(SIZE, 5, 0.0)) is None, "too few to tell how they lie"
    assert value_of(models) == {7.0}


def test_put_back_twice_in_a_row_keeps_what_was_learned_in_between() -> None:
    bank, models = make()
    visit(bank, models, 5.0, 0, 0.0)
    assert bank.enter(rows(FRESH, 1)) is not None
    set_to(models, 5.5)
    found = bank.enter(rows(FRESH, 2))
    assert found is not None
    assert not found.other
    assert value_of(models) == {5.5}
    assert all((layer.running_mean == 5.0).all() for layer in models["edge"].layers.values())


def test_a_domain_has_one_entry_the_newest_and_counts_all_visits() -> None:
    bank, models = make()
    visit(bank, models, 5.0, 0, 0.0)
    bank.enter(rows(FRESH, 1))
    visit(bank, models, 6.0, 2, 0.0)
    assert [entry.learned for entry in bank.entries] == [6 * FRESH]
    bank.enter(rows(FRESH, 3))
    assert value_of(models) == {6.0}


def test_what_was_learned_from_a_batch_or_two_is_not_kept() -> None:
    bank, _ = make()
    bank.learn_from(2 * FRESH - 1)
    bank.leave(rows(48, 0))
    assert not bank.entries
    bank.learn_from(2 * FRESH)
    bank.leave(rows(SIZE + 2, 0))
    assert not bank.entries, "nothing is known of how the inputs lie"


def test_of_more_than_fit_one_of_the_two_most_alike_goes() -> None:
    bank, models = make()
    for seed, (value, shift) in enumerate([(1.0, 0.0), (2.0, 9.0), (3.0, 20.0), (4.0, 13.0)]):
        visit(bank, models, value, seed, shift)
    kept = [entry.rows.mean() for entry in bank.entries]
    assert [round(float(mean)) for mean in kept] == [0, 20, 13], "9 and 13 are most alike, and 9 was first"


def test_it_recognises_a_domain_that_it_knows_and_no_other() -> None:
    bank, models = make()
    visit(bank, models, 5.0, 0, 0.0)
    assert bank.recognises(rows(FRESH, 1, 0.0), rows(48, 2, 9.0))
    assert not bank.recognises(rows(FRESH, 1, 0.0), rows(48, 2, 0.0)), "it is what was there before"
    assert not bank.recognises(rows(FRESH, 1, 20.0), rows(48, 2, 9.0)), "it is like no entry"
    assert not bank.recognises(rows(FRESH, 1, 0.0), None)


def test_without_room_nothing_is_kept() -> None:
    bank, models = make(AdaptConfig(bank=0, fresh=FRESH))
    visit(bank, models, 5.0, 0, 0.0)
    assert not bank.entries
    assert bank.state() == State({}, {})


# -- its state


def filled() -> NormBank:
    bank, models = make()
    for seed, (value, shift) in enumerate([(1.0, 0.0), (2.0, 9.0)]):
        visit(bank, models, value, seed, shift)
    bank.enter(rows(FRESH, 5, 9.0))
    return bank


def same(one: State, other: State) -> bool:
    tensors = one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(tensor, other.tensors[key]) for key, tensor in one.tensors.items()
    )
    return tensors and one.values == other.values


def test_a_restored_bank_is_the_same() -> None:
    state = filled().state()
    other, _ = make()
    other.load(state)
    assert same(other.state(), state)
    other.load(State({}, {}))
    assert other.entries == []


def test_a_bank_with_less_room_keeps_what_fits() -> None:
    state = filled().state()
    for room in (0, 1):
        config = AdaptConfig(bank=room, fresh=FRESH)
        bank, _ = make(config)
        bank.load(state)
        assert len(bank.entries) == room


ENTRY = {"vectors": [], "rows": 48, "learned": 0}
BROKEN: list[dict[str, Any]] = [
    {"entries": []},
    {"entries": 3},
    {"unknown": 1},
    {"current": 2},
    {"current": -1},
    {"learned": -1},
    {"before": "x"},
    {"entries": [ENTRY | {"vectors": ["edge.other"]}] * 2},
    {"entries": [ENTRY | {"rows": 3}] * 2},
    {"entries": [ENTRY | {"more": 3}] * 2},
    {"entries": [ENTRY] * 3},
]


@pytest.mark.parametrize("change", BROKEN)
def test_values_that_make_no_sense_are_refused(change: dict[str, Any]) -> None:
    bank = filled()
    before = bank.state()
    with pytest.raises(FormatError):
        bank.load(before._replace(values=before.values | change))
    assert same(bank.state(), before)


BANK = filled()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_tensors_that_do_not_fit_are_refused(data: st.DataObject) -> None:
    before = BANK.state()
    name = data.draw(st.sampled_from(sorted(before.tensors)))
    tensor = before.tensors[name]
    kind = data.draw(st.sampled_from(["gone", "unknown", "longer", "flat", "nan", "huge"]))
    if kind == "huge":
        name = "0.rows"
        tensor = before.tensors[name]
    changed = {
        "unknown": {f"{name}.x": tensor},
        "longer": {name: torch.cat([tensor, tensor])},
        "flat": {name: tensor.reshape(1, -1, 1)},
        "nan": {name: torch.full_like(tensor, math.nan)},
        "huge": {name: tensor * 1e30},
    }.get(kind, {})
    tensors = {key: t for key, t in before.tensors.items() if kind != "gone" or key != name} | changed
    with pytest.raises(FormatError):
        BANK.load(State(tensors, before.values))
    assert same(BANK.state(), before)


# -- in the learner


def stream(photos: Photos) -> dict[str, list[np.ndarray]]:
    """Batches of a bright and of a dark domain; random images of one kind have little spread, so they are mixed."""
    rng = np.random.default_rng(0)
    base = [(image * rng.uniform(0.5, 1.0)).astype(np.uint8) for image in photos(400)]
    return {"day": base, "night": [image // 8 for image in base]}


def learner_and_feed(
    edge: Model, foundation: Model, photos: Photos, config: AdaptConfig = CONFIG
) -> tuple[CemaLearner[str], Callable[..., None]]:
    images = stream(photos)

    def recall(items: Any) -> list[np.ndarray | None]:
        return [images[item.split()[0]][int(item.split()[1])] for item in items]

    learner: CemaLearner[str] = CemaLearner(edge, foundation, config, recall=recall)

    def feed(into: CemaLearner[str], name: str, first: int, count: int) -> None:
        for k in range(first, first + count):
            into.learn([f"{name} {i}" for i in range(FRESH * k, FRESH * k + FRESH)])

    return learner, feed


def test_a_domain_that_comes_again_gets_its_state_back(
    edge: Model, foundation: Model, photos: Photos
) -> None:
    learner, feed = learner_and_feed(edge, foundation, photos)
    feed(learner, "day", 0, 4)
    of_day = learner.edge.norm_vectors()["parameters"]
    feed(learner, "night", 0, 4)
    assert learner.changes.changes == 1
    assert [entry.learned for entry in learner.bank.entries] == [4 * FRESH]
    torch.testing.assert_close(learner.bank.entries[0].vectors["edge.parameters"], of_day, rtol=0, atol=0)
    batch = Batch(stream(photos)["day"][100 : 100 + FRESH])
    assert learner.prepare(batch), "it is of one domain, and the bank knows that"
    assert learner.changes.changes == 2
    torch.testing.assert_close(learner.edge.norm_vectors()["parameters"], of_day, rtol=0, atol=0)
    domain = learner.domain()
    assert domain is not None
    assert learner.learn([f"day {i}" for i in range(100, 100 + FRESH)], batch).step == 9
    assert learner.changes.changes == 2, "what was prepared is not noted twice"
    assert learner.since_change == FRESH


def test_learning_prepares_by_itself(edge: Model, foundation: Model, photos: Photos) -> None:
    states = []
    for apart in (False, True):
        learner, feed = learner_and_feed(edge, foundation, photos)
        feed(learner, "day", 0, 4)
        feed(learner, "night", 0, 3)
        images = stream(photos)["day"]
        for k in (6, 7):
            batch = Batch(images[FRESH * k : FRESH * k + FRESH])
            if apart:
                learner.prepare(batch)
            learner.learn([f"day {i}" for i in range(FRESH * k, FRESH * k + FRESH)], batch)
        states.append(learner.dumps())
    assert states[0] == states[1]


@pytest.mark.parametrize("moment", range(1, 13))
def test_a_restored_learner_goes_on_exactly(
    moment: int, edge: Model, foundation: Model, photos: Photos
) -> None:
    """Saved at any moment of two visits to each domain: before, at and after each change."""
    order = [
        (name, k) for visit in range(2) for name in ("day", "night") for k in range(3 * visit, 3 * visit + 3)
    ]
    straight, feed = learner_and_feed(edge, foundation, photos)
    resumed, _ = learner_and_feed(edge, foundation, photos)
    for name, k in order[:moment]:
        feed(straight, name, k, 1)
    resumed.loads(straight.dumps())
    for name, k in order[moment:]:
        feed(straight, name, k, 1)
        feed(resumed, name, k, 1)
    assert straight.dumps() == resumed.dumps()
    assert straight.bank.entries
    assert straight.changes.changes == 3


def test_a_state_from_before_there_was_a_bank_goes_on(edge: Model, foundation: Model, photos: Photos) -> None:
    learner, feed = learner_and_feed(edge, foundation, photos)
    feed(learner, "day", 0, 4)
    state = learner.state_dict()
    assert state.values.pop("bank")["entries"] == []
    assert not [key for key in state.tensors if key.startswith("bank.")]
    other, _ = learner_and_feed(edge, foundation, photos)
    other.load_state_dict(state)
    feed(other, "night", 0, 4)
    feed(other, "day", 4, 2)
    assert other.bank.entries


def test_a_state_with_a_bank_that_does_not_fit_changes_nothing(
    edge: Model, foundation: Model, photos: Photos
) -> None:
    learner, feed = learner_and_feed(edge, foundation, photos)
    feed(learner, "day", 0, 4)
    feed(learner, "night", 0, 2)
    good = learner.state_dict()
    before = learner.dumps()
    name = "bank.0.edge.parameters"
    for tensors in (
        {key: t for key, t in good.tensors.items() if key != name},
        good.tensors | {"bank.0.unknown": torch.zeros(1)},
        good.tensors | {name: torch.zeros(3)},
    ):
        with pytest.raises(FormatError):
            learner.load_state_dict(good._replace(tensors=tensors))
    with pytest.raises(FormatError, match="bank"):
        learner.load_state_dict(good._replace(values=good.values | {"bank": {"entries": 3}}))
    assert learner.dumps() == before


def test_after_a_restart_the_bank_is_empty(edge: Model, foundation: Model, photos: Photos) -> None:
    learner, feed = learner_and_feed(edge, foundation, photos)
    feed(learner, "day", 0, 4)
    feed(learner, "night", 0, 2)
    assert learner.bank.entries
    learner.restart()
    assert not learner.bank.entries


def test_an_entry_is_bounded_by_the_window() -> None:
    bank, models = make()
    set_to(models, 2.0)
    bank.learn_from(10 * FRESH)
    bank.leave(rows(500, 0))
    entry = bank.entries[0]
    assert isinstance(entry, Entry)
    assert entry.rows.shape == (CONFIG.window, SIZE)
