"""What a learner refuses: models that do not fit each other, and states that are none of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cema.errors import FormatError, ModelError

if TYPE_CHECKING:
    from cema.models.spec import Model

__all__ = ["FORMAT", "check_pair", "check_values"]

FORMAT = "cema.adapter/1"


def check_pair(edge: Model, foundation: Model) -> None:
    """Refuse two models that do not speak of the same classes."""
    if edge.classes != foundation.classes:
        raise ModelError(
            f"expected both models to have the same classes, got {edge.classes} of {edge.name} and "
            f"{foundation.classes} of {foundation.name}; distillation compares class by class"
        )
    if edge.labels and foundation.labels and edge.labels != foundation.labels:
        raise ModelError(
            f"expected {edge.name} and {foundation.name} to name the same classes in the same order; reorder "
            "the foundation model's logits, or leave its labels out if only the wording differs"
        )


def check_values(values: dict[str, Any]) -> None:
    """Refuse a state of another format, or one that lacks a part."""
    if values.get("format") != FORMAT:
        raise FormatError(
            f"expected an adapter state of format {FORMAT}, got {values.get('format')!r}; start anew"
        )
    try:
        needed = ("counters", "since_change", "surroundings", "rng", "replay")
        complete = (
            all(key in values for key in needed)
            and {"changes", "mixed", "shapes"} <= values["surroundings"].keys()
            and all(
                {"name", "source", "started", "counts"} <= values["models"][side].keys()
                for side in ("edge", "foundation")
            )
        )
    except (KeyError, AttributeError, TypeError):
        complete = False
    if not complete:
        raise FormatError(
            "the adapter state lacks one of models, counters, surroundings, rng and replay; use another or start anew"
        )
