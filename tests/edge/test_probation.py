"""A device goes back by itself from a version that is worse here than the one before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from edge_support import CLASSES, Cloud, Update, images, make_update, norm_state, reference

from cema.edge.agent import EdgeAgent
from cema.edge.background import Clock
from cema.edge.config import EdgeConfig, ProbationConfig
from cema.edge.probation import PAIRED, Answered, Probation, worse
from cema.edge.retry import Backoff
from cema.edge.runtime import Active
from cema.formats.bundle import Bundle
from cema.formats.payload import encode_payload, round_norm_state
from cema.formats.report import Refused

Make = Callable[..., EdgeConfig]
CONFIG = ProbationConfig(images=40)


def answered(entropy: float, *chosen: int) -> Answered:
    counts = np.array([*chosen, *[0] * (CLASSES - len(chosen))], np.int64)
    return Answered(int(counts.sum()), entropy * counts.sum(), counts)


@pytest.mark.parametrize(
    ("now", "before", "config", "said"),
    [
        (answered(0.8, 5, 5), answered(0.4, 5, 5), CONFIG, "a mean entropy of 0.80 nats, 0.40 before"),
        (answered(0.6, 5, 5), answered(0.4, 5, 5), CONFIG, None),
        (answered(0.1, 5, 5), answered(0.01, 5, 5), CONFIG, None),  # both are nearly sure
        (answered(0.8, 5, 5), answered(0.4, 5, 5), ProbationConfig(entropy=0), None),
        (answered(0.1, 10), answered(0.4, 2, 2, 2, 2, 2), CONFIG, "1.0 classes are chosen, 5.0 before"),
        (answered(0.1, 10), answered(0.4, 5, 5), CONFIG, None),  # half as many is no collapse
        (answered(0.1, 10), answered(0.4, 2, 2, 2, 2, 2), ProbationConfig(classes=0), None),
        (answered(0.1, 10), Answered.nothing(CLASSES), CONFIG, None),
    ],
)
def test_what_is_much_worse_is_said(
    now: Answered, before: Answered, config: ProbationConfig, said: str | None
) -> None:
    assert worse(now, before, config) == said


class Trial:
    """A probation without its thread, of models that answer as they are told."""

    def __init__(self, answers: dict[int, npt.NDArray[np.float32]]) -> None:
        self.answers = answers
        self.verdicts: list[tuple[int, str | None, Active | None]] = []
        self.asked: list[tuple[int, int]] = []
        self.good = Active(None, version=1)
        self.probation = Probation(
            CONFIG,
            CLASSES,
            answer=self._answer,
            before=lambda: self.good,
            verdict=lambda *verdict: self.verdicts.append(verdict),
            clock=Clock(),
            backoff=Backoff(),
            on_change=lambda: None,
        )

    def _answer(self, active: Active, batch: Sequence[Any]) -> npt.NDArray[np.float32]:
        self.asked.append((active.version, len(batch)))
        return np.tile(self.answers[active.version], (len(batch), 1))[: len(batch)]

    def predict(self, active: Active, count: int, entropy: float, *, guarded: bool = False) -> None:
        labels = np.arange(count, dtype=np.int64) % CLASSES
        batch = np.zeros((count, 4, 4, 3), np.uint8)
        self.probation.note(active, labels, np.full(count, entropy), batch, guarded=guarded)


SURE = np.eye(CLASSES, dtype=np.float32) * 9
UNSURE = np.eye(CLASSES, dtype=np.float32) * 0.1


def test_a_version_that_does_as_well_as_the_one_before_is_good() -> None:
    trial = Trial({})
    two = Active(None, version=2)
    trial.predict(trial.good, 50, 0.5)
    trial.probation.begin(two)
    trial.predict(two, 39, 0.5)
    trial.probation.step()
    assert (trial.verdicts, trial.probation.on_trial) == ([], True)
    trial.predict(two, 1, 0.5)
    trial.probation.step()
    assert (trial.verdicts, trial.asked, trial.probation.on_trial) == ([(2, None, None)], [], False)


@pytest.mark.parametrize("bad", [False, True])
def test_where_it_seems_worse_both_answer_to_the_same_images(bad: bool) -> None:
    trial = Trial({1: SURE, 2: UNSURE if bad else SURE})
    two = Active(None, version=2)
    trial.predict(trial.good, 50, 0.5)
    trial.probation.begin(two)
    trial.predict(two, 40, 1.5)
    trial.predict(two, PAIRED - 1, 1.5)
    trial.probation.step()
    assert trial.verdicts == []
    trial.predict(two, 5, 1.5)
    trial.probation.step()
    assert trial.asked == [(2, PAIRED), (1, PAIRED)]
    ((version, reason, before),) = trial.verdicts
    assert (version, before) == (2, trial.good if bad else None)
    assert (reason is not None) == bad, "harder images are no fault of the version"
    assert not trial.probation.on_trial


def test_what_the_source_model_predicted_says_nothing_of_the_version() -> None:
    trial = Trial({})
    two = Active(None, version=2)
    trial.predict(trial.good, 50, 0.5)
    trial.probation.begin(two)
    trial.predict(two, 100, 2.0, guarded=True)
    trial.predict(trial.good, 100, 2.0)  # calls that began before the swap
    trial.predict(two, 40, 0.5)
    trial.probation.step()
    assert trial.verdicts == [(2, None, None)]


def test_a_newer_version_on_trial_is_compared_with_the_last_good_one() -> None:
    trial = Trial({1: SURE, 3: UNSURE})
    two, three = Active(None, version=2), Active(None, version=3)
    trial.predict(trial.good, 50, 0.5)
    trial.probation.begin(two)
    trial.predict(two, 30, 1.5)
    trial.probation.begin(three)
    trial.predict(three, 40, 1.5)
    trial.predict(three, PAIRED, 1.5)
    trial.probation.step()
    assert trial.verdicts[0][0] == 3
    assert trial.verdicts[0][1] is not None


def test_after_a_restart_both_answer_at_once() -> None:
    trial = Trial({1: SURE, 2: UNSURE})
    two = Active(None, version=2)
    trial.probation.begin(two, resumed=True)
    trial.predict(two, PAIRED, 0.5)
    trial.probation.step()
    assert trial.verdicts[0][1] is not None


def test_without_anything_to_compare_with_both_answer_after_the_trial() -> None:
    trial = Trial({1: SURE, 2: SURE})
    two = Active(None, version=2)
    trial.predict(trial.good, 10, 0.5)
    trial.probation.begin(two)
    trial.predict(two, 40, 0.5)
    trial.predict(two, PAIRED, 0.5)
    trial.probation.step()
    assert trial.verdicts == [(2, None, None)]


def test_large_images_are_kept_within_bounds() -> None:
    trial = Trial({1: SURE, 2: SURE})
    two = Active(None, version=2)
    trial.probation.begin(two, resumed=True)
    batch = np.zeros((9, 1024, 1024, 3), np.uint8)
    trial.probation.note(two, np.zeros(9, np.int64), np.zeros(9), batch, guarded=False)
    trial.probation.step()
    assert trial.asked == [(2, 3), (1, 3)]


def bad_update(bundle: Bundle, key: Ed25519PrivateKey, version: int) -> Update:
    """A version whose logits are all the same."""
    state = round_norm_state(norm_state(seed=version))
    last = {name: np.zeros_like(value) for name, value in state.items() if name.startswith("bn1")}
    state = {**state, **last}
    logits = reference(state, bundle.golden_images).astype(np.float32)
    return make_update(bundle, key, version, payload=encode_payload(state, logits))


class Camera:
    """An agent that predicts until something is so."""

    def __init__(self, config: EdgeConfig) -> None:
        self.agent = EdgeAgent(config)
        self.seed = 0

    def until(self, done: Callable[[], bool]) -> None:
        for _ in range(4000):
            if done():
                return
            self.seed += 1
            self.agent.predict(images(4, self.seed))
            threading.Event().wait(0.002)
        raise AssertionError(self.agent.status())


@pytest.fixture
def config(make_config: Make, cloud: Cloud) -> EdgeConfig:
    return make_config(cloud, probation=CONFIG)


def test_a_device_goes_back_and_says_so_and_starts_with_the_last_good_version(
    config: EdgeConfig, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey, quick_path: Path
) -> None:
    camera = Camera(config)
    good = make_update(bundle, key, 3)
    with camera.agent as agent:
        cloud.publish(good)
        camera.until(lambda: agent.status().version == 3 and not agent.status().on_trial)
        cloud.publish(bad_update(bundle, key, 4))
        camera.until(lambda: agent.status().version == 4)
        camera.until(lambda: agent.status().version == 3)
        status = agent.status()
        assert (status.digest, status.rejected_updates) == (good.manifest.payload, {"returned": 1})
        assert "mean entropy" in (status.last_error or "")
        assert cloud.reports is not None
        camera.until(lambda: cloud.reports[-1].refused == Refused(version=4, reason="returned"))
        assert cloud.reports[-1].serving.version == 3
        # The same content under another number is not tried again.
        cloud.publish(make_update(bundle, key, 5, payload=bad_update(bundle, key, 4).payload))
        camera.until(lambda: agent.status().rejected_updates == {"returned": 2})
        assert agent.status().version == 3
    # Without a network it starts with the last good version, and what is older than all is not accepted.
    cloud.update = None
    camera = Camera(config)
    with camera.agent as agent:
        assert (agent.status().version, agent.status().digest) == (3, good.manifest.payload)
        cloud.publish(make_update(bundle, key, 2))
        camera.until(lambda: agent.status().rejected_updates.get("old") == 1)
        cloud.publish(make_update(bundle, key, 6))
        camera.until(lambda: agent.status().version == 6 and not agent.status().on_trial)
    assert len(list((quick_path / "state").glob("update-*.bin"))) == 1
    assert not (quick_path / "state" / "before.json").exists()


def test_a_restart_in_the_middle_goes_on_with_the_trial(
    config: EdgeConfig, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey
) -> None:
    camera = Camera(config)
    with camera.agent as agent:
        cloud.publish(bad_update(bundle, key, 4))
        agent.wait_for_version(4, 20)
    camera = Camera(config)
    with camera.agent as agent:
        assert (agent.status().version, agent.status().on_trial) == (4, True)
        camera.until(lambda: agent.status().version == 0)
        assert agent.status().rejected_updates == {"returned": 1}
    with EdgeAgent(config) as agent:
        assert agent.status().version == 0


def test_where_it_is_switched_off_every_version_stays(
    make_config: Make, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey
) -> None:
    camera = Camera(make_config(cloud, probation=ProbationConfig(images=0)))
    with camera.agent as agent:
        cloud.publish(bad_update(bundle, key, 4))
        camera.until(lambda: agent.status().version == 4)
        for _ in range(50):
            agent.predict(images(4))
        assert (agent.status().version, agent.status().on_trial) == (4, False)
