"""Models as people bring them, in every method of the benchmark and in the learner of the service."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from brought_models import InPlace, OwnLayerNorm, Tokens, mixed, model, net
from torch import nn

from cema.adapt.checkpoint import State
from cema.adapt.config import AdaptConfig
from cema.adapt.learner import CemaLearner
from cema.errors import FormatError
from cema.methods.base import MethodContext
from cema.methods.registry import METHODS, make_adapter
from cema.models.norm_kinds import leave_as_it_is
from cema.models.spec import Model

SETTINGS: dict[str, dict[str, Any]] = {
    "cotta": {"views": 2},
    "cema": {"adapt": {"fresh": 8, "replayed": 8, "replay_from": 8}},
    "sar": {"e_margin": 2.0, "lr": 0.1},
}


def images(count: int, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_forward_that_changes_its_input_gives_the_same_numbers(name: str) -> None:
    """CoTTA shows a batch to three models, SAR to one twice."""

    def run(in_place: bool) -> list[np.ndarray]:
        context = MethodContext(foundation=model(net()), source_images=images(8, 9), batch=8)
        adapter = make_adapter(name, model(InPlace(in_place).eval()), SETTINGS.get(name, {}), context)
        return [adapter.step(images(8, seed)).logits for seed in range(3)]

    for got, expected in zip(run(True), run(False), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("norm", [OwnLayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("name", ["tent", "sar", "cotta", "eata"])
def test_own_layers_and_rms_norm_learn(name: str, norm: type[nn.Module]) -> None:
    module = Tokens(nn.RMSNorm(8)) if norm is nn.RMSNorm else net(OwnLayerNorm())
    layer = "norm" if norm is nn.RMSNorm else "1"
    settings = {"eata": {"e_margin": 2.0, "d_margin": 1.0, "lr": 0.1}, "tent": {"lr": 0.1}} | SETTINGS
    context = MethodContext(source_images=images(8, 9))
    adapter: Any = make_adapter(name, model(module.eval()), settings.get(name, {}), context)
    adapter.step(images(8))
    adapted = (adapter.student if name == "cotta" else adapter.model).module
    before, after = (m.get_submodule(layer).weight.detach() for m in (module, adapted))
    assert not torch.equal(before, after)


def learner(edge: Model) -> CemaLearner[Any]:
    config = AdaptConfig(fresh=8, replayed=8, replay_from=8, edge_lr=0.1)
    return CemaLearner(edge, model(net()), config, recall=lambda items: [images(1, i)[0] for i in items])


def test_a_checkpoint_from_before_rms_norm_was_adapted_goes_on() -> None:
    before = mixed()
    leave_as_it_is(before.module.norm)  # type: ignore[arg-type]
    old = learner(before)
    old.learn(list(range(8)))
    state = old.state_dict()
    assert "edge.parameter.norm.weight" not in state.tensors
    new = learner(mixed())
    new.learn(list(range(8, 16)))
    new.load_state_dict(state)
    norm_state = new.norm_state()
    for key, value in old.norm_state().items():
        np.testing.assert_array_equal(norm_state[key], value)
    np.testing.assert_array_equal(norm_state["norm.scale"], np.ones(8, np.float32))
    again = learner(mixed())
    again.load_state_dict(new.state_dict())
    del state.tensors["edge.parameter.last.weight"]
    with pytest.raises(FormatError, match="missing"):
        again.load_state_dict(State(state.tensors, state.values))
