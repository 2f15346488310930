"""Which logit each class folder is scored on: where names of folders meet the logits of a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cema.data.base import Dataset
from cema.data.folder import WNIDS_FILE, LabelledFolder, as_numbers
from cema.errors import ConfigError

__all__ = ["FolderClasses", "class_columns"]

_LIST = f"give the list of class names, one a line, in the order of the logits: --wnids FILE, or {WNIDS_FILE} beside it"
_SHOWN = 5


@dataclass(frozen=True)
class FolderClasses:
    """The classes of a labelled folder.

    Attributes
    ----------
    root : Path
        The folder.
    names : tuple of str
        What labels mean; see `cema.data.folder.LabelledFolder`.
    listed : Path or None
        The list that they are from.
    passed_over : str
        In words, what in the folder is not used though it may have been meant to be; empty if there is nothing.
    """

    root: Path
    names: tuple[str, ...]
    listed: Path | None = None
    passed_over: str = ""

    @classmethod
    def of(cls, folder: LabelledFolder, root: Path) -> FolderClasses:
        """Return the classes of a folder that was opened, for messages about `root`."""
        said = []
        if folder.passed_over:
            counts = ", ".join(
                f"{count} {ending or 'no ending'}" for ending, count in folder.passed_over.items()
            )
            said.append(f"files that are no images by their names: {counts}")
        if folder.misplaced:
            said.append(f"images beside the class folders or in folders below them: {folder.misplaced}")
        if folder.empty:
            said.append(f"class folders without images: {_some(folder.empty)}")
        return cls(root, folder.classes, folder.listed, "; ".join(said))

    def columns(self, logits: int, labels: Sequence[str] | None, model: str) -> tuple[np.ndarray, str]:
        """Return the logit of each class.

        Parameters
        ----------
        logits : int
            How many the model has.
        labels : sequence of str, optional
            The model's own names of its classes.
        model : str
            Its name, for messages.

        Returns
        -------
        columns : ndarray of int64, shape (len(names),)
            The logit that each label is scored on.
        order : str
            In words, how they were found.

        Raises
        ------
        ConfigError
            If nothing says which of the logits belong to the classes.
        """
        count = len(self.names)
        places = np.arange(count)
        if logits < count:
            raise ConfigError(
                f"{model} has {logits} classes and the data have {count}; choose a model that was trained for them"
            )
        if self.listed is not None:
            if count != logits:
                raise ConfigError(
                    f"{self.listed}: expected a line for each of the {logits} logits of {model}, in their order, got "
                    f"{count}; complete the list, or choose a model for these classes"
                )
            return places, f"class folders are numbered by {self.listed.name}"
        if labels is not None and set(self.names) <= set(labels) and len(set(labels)) == len(labels):
            found = np.array([labels.index(name) for name in self.names], np.int64)
            return found, f"class folders are matched with the class names of {model}"
        numbers = as_numbers(self.names)
        if numbers is not None:
            return self._by_number(numbers, logits, model)
        if logits > count:
            raise ConfigError(
                f"{self.root}: {count} class folders ({_some(self.names)}), but {model} has {logits} logits, and "
                f"nothing says which of them these classes are"
                + ("" if labels is None else f" (the model's own names are {_some(labels)})")
                + f"; {_LIST}"
            )
        return places, self._text_order(labels, model)

    def _by_number(self, numbers: tuple[int, ...], logits: int, model: str) -> tuple[np.ndarray, str]:
        """Return the logits of numbered classes: where there are more logits, the numbers are theirs."""
        first, last = self.names[0], self.names[-1]
        if logits == len(numbers):
            text = "" if list(self.names) == sorted(self.names) else "; a list (--wnids) may say otherwise"
            return np.arange(logits), (
                f"class folders are ordered by number: {first} is logit 0, {last} is logit {logits - 1}{text}"
            )
        if numbers[-1] >= logits:
            raise ConfigError(
                f"{self.root}: class folder {last} is no logit of {model}, which has 0 to {logits - 1}; {_LIST}"
            )
        return np.array(numbers, np.int64), (
            f"class folders are numbers, fewer than the {logits} logits of {model}: the number is the logit, as in "
            f"{last} for logit {numbers[-1]}"
        )

    def _text_order(self, labels: Sequence[str] | None, model: str) -> str:
        """Say that classes count in the order of their names, and what may be wrong with it."""
        said = f"class folders are ordered as text: {_some(self.names)}"
        if list(self.names) != sorted(self.names, key=_natural):
            said += f"; numbers in names do not count, so that 10 comes before 2: where they should, {_LIST}"
        if labels is not None:
            said += (
                f"; {model} has other names for its classes ({_some(labels)}): if the order differs, {_LIST}"
            )
        return said


def class_columns(
    dataset: Dataset, logits: int, labels: Sequence[str] | None, model: str
) -> tuple[np.ndarray | None, str]:
    """Return which logit each label of a data set is scored on.

    Parameters
    ----------
    dataset : Dataset
        Of class folders where it has ``folder_classes`` (`FolderClasses`).
    logits, labels, model
        As for `FolderClasses.columns`.

    Returns
    -------
    columns : ndarray of int64 or None
        The logit of each label; None where labels are logits, or places in `Dataset.logits`.
    order : str
        In words, how they were found, or what is odd about them; empty where there is nothing to say.

    Raises
    ------
    ConfigError
        If the model has fewer logits than the data have classes, or nothing says which of its logits they are.
    """
    classes: FolderClasses | None = getattr(dataset, "folder_classes", None)
    if classes is not None:
        columns, order = classes.columns(logits, labels, model)
        return (columns if dataset.logits is None else None), order
    if logits < dataset.classes:
        raise ConfigError(
            f"{model} has {logits} classes and the data have {dataset.classes}; "
            "choose a model that was trained for them"
        )
    if logits == dataset.classes:
        return None, ""
    return None, (
        f"{model} has {logits} logits and {dataset.name} {dataset.classes} classes: its labels are taken as the first "
        f"{dataset.classes} logits"
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """Return what sorts names as people count: numbers in them by their value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _some(names: Sequence[str]) -> str:
    """Return the first few names."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
