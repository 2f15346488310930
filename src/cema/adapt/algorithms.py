"""Which algorithm learns: CEMA, or a class that a stranger names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar

from cema._util.names import did_you_mean, is_object_name, load_object
from cema.errors import ConfigError

if TYPE_CHECKING:
    from cema.adapt.base import Learner, LearnerFactory, Recall
    from cema.adapt.config import AdaptConfig
    from cema.models.spec import Model

__all__ = ["ALGORITHMS", "make_learner"]

T = TypeVar("T")
ALGORITHMS = {"cema": "cema.adapt.learner:CemaLearner"}
"""What each built-in name stands for."""


def make_learner(
    edge: Model,
    foundation: Model,
    config: AdaptConfig,
    *,
    device: str = "cpu",
    dtype: Literal["float32", "bfloat16"] = "float32",
    recall: Recall[T],
    seed: int = 0,
) -> Learner[T]:
    """Make the learner that ``config.algorithm`` names; the worker and the benchmark both call this.

    Parameters
    ----------
    edge, foundation : cema.models.spec.Model
        The source models.
    config : AdaptConfig
        ``algorithm`` is a key of `ALGORITHMS`, ``package.module:Class`` or ``path/to/file.py:Class``.
    device, dtype, recall, seed
        See `cema.adapt.base.LearnerFactory`.

    Raises
    ------
    ConfigError
        When there is no such algorithm.
    """
    factory = _factory(config.algorithm)
    return factory(edge, foundation, config, device=device, dtype=dtype, recall=recall, seed=seed)


def _factory(name: str) -> LearnerFactory:
    if name not in ALGORITHMS and not is_object_name(name):
        raise ConfigError(
            f"adapt.algorithm: expected {', '.join(ALGORITHMS)} or package.module:Class, got {name!r}"
            f"{did_you_mean(name, ALGORITHMS)}"
        )
    found: Any = load_object(ALGORITHMS.get(name, name))
    if not callable(found):
        raise ConfigError(f"adapt.algorithm: {name} is no class of a learner; see cema.adapt.base.Learner")
    factory: LearnerFactory = found
    return factory
