"""Settings and presets."""

from __future__ import annotations

import msgspec
import pytest

from cema.adapt.config import PRESETS, AdaptConfig


def test_the_presets_are_the_published_weightings() -> None:
    poster, reference = PRESETS["poster"], PRESETS["reference"]
    assert (poster.kl, poster.ce, poster.entropy) == (3, 3, 1)
    assert (reference.kl, reference.ce, reference.entropy) == (3, 1, 3)
    assert poster.teaching_weight == poster.entropy_weight
    assert (reference.teaching_weight, reference.entropy_weight) == ("foundation", "edge")


def test_a_weight_replaces_the_presets() -> None:
    assert AdaptConfig(preset="reference", kl=0.0).loss_weights == msgspec.structs.replace(
        PRESETS["reference"], kl=0.0
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"fresh": 0},
        {"replayed": -1},
        {"sgd_momentum": 1.0},
        {"statistics_momentum": 0.0},
        {"edge_lr": -1e-3},
        {"kl": -1.0},
        {"capacity": 100, "replay_from": 101},
        {"window": 0},
        {"source_share": 1.0},
        {"source_share": 0.5, "statistics": "step"},
        {"preset": "paper"},
        {"start": "middle"},
        {"learning_rate": 0.1},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(settings, AdaptConfig)


def test_the_message_names_the_setting() -> None:
    with pytest.raises(ValueError, match=r"fresh: expected .* got 0"):
        AdaptConfig(fresh=0)
