"""Running statistics that stay consistent in deep networks.

A layer's statistics depend on how the layers before it normalise. If every layer's statistics move a little
towards the batch while the batch is normalised with the old ones, the layers describe inputs that no longer
occur, and a deep network falls apart until all have settled. Here the statistics of a batch are read in a
pass in which every layer normalises with its new value at once: they fit one another whatever was there before.
That pass may be the one in which the model learns, so that following costs no pass of its own.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch

from cema.adapt.norm import normalising

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cema.adapt.norm import AdaptiveBatchNorm, Merge

__all__ = ["RunningStatistics", "merge_of", "parts_of", "with_share_of"]


class RunningStatistics:
    """Moves the running statistics of a model's BatchNorm layers.

    Parameters
    ----------
    layers : sequence of AdaptiveBatchNorm
        Whose statistics to move.
    start : {"first_batch", "source"}
        Whether the first batch replaces the source statistics or is averaged with them.
    window : int or None
        Average over this many of the latest samples, or exponentially when None. An average that starts at
        the source counts the source statistics as one window of samples until they have left it.
    momentum : float
        Rate of the exponential average for a batch of `batch` samples.
    batch : int
        Samples in a full batch; a smaller batch moves the average by less.
    share : float
        What the statistics that the layers have now, the source model's, count for beside a window's, in [0, 1).

    Attributes
    ----------
    source : torch.Tensor
        What `running` returned at the beginning.
    """

    def __init__(
        self,
        layers: Sequence[AdaptiveBatchNorm],
        *,
        start: Literal["first_batch", "source"],
        window: int | None,
        momentum: float,
        batch: int,
        share: float = 0.0,
    ) -> None:
        self.layers = list(layers)
        self.share = share
        self.window = window
        self.momentum = momentum
        self.batch = batch
        self.started = start == "source"
        self._entries: list[tuple[int, torch.Tensor]] = []
        self.source = self.running() if self.layers else torch.empty(2, 0)
        if self.layers and self.started and window is not None:
            self._entries.append((window, self.source.clone()))

    def observe(self, count: int, *, reset: bool = False, followed: bool = False) -> bool:
        """Take in what the layers observed in the last forward pass over `count` samples.

        Parameters
        ----------
        count : int
            Samples.
        reset : bool
            Whether the window is cleared first, because it holds another domain.
        followed : bool
            Whether the layers have moved already, in a pass inside of `following`.

        Returns
        -------
        bool
            False when nothing was taken because a layer saw a single value per channel.
        """
        observed = [layer.observed for layer in self.layers]
        if not observed or any(item is None for item in observed):
            return False
        flat = torch.stack([torch.cat([item[i].flatten() for item in observed if item]) for i in (0, 1)])
        flat = flat.to("cpu", torch.float32)
        if not torch.isfinite(flat).all():
            return False
        if self.window is not None:
            if reset:
                self._entries.clear()
            self._entries.append((count, flat))
            self._entries = self._kept(self._entries, self.window)
        if not followed:
            self._write(self._moved(flat, count))
        self.started = True
        return True

    @contextmanager
    def following(self, count: int, *, reset: bool = False) -> Iterator[None]:
        """Let every layer move to a batch in the forward pass inside a ``with`` block, before it normalises.

        Call `observe` with ``followed=True`` after the block, or `put_back` what `running` returned before it.

        Parameters
        ----------
        count : int
            Samples in that pass.
        reset : bool
            Whether the window is cleared first, because it holds another domain.
        """
        for layer, merge in zip(self.layers, self._merges(count, reset), strict=True):
            layer.merge = merge
        try:
            with normalising(self.layers, "follow"):
                yield
        finally:
            for layer in self.layers:
                layer.merge = None

    def running(self) -> torch.Tensor:
        """Return all running means and variances, (2, total channels), float32, on the CPU."""
        means = torch.cat([layer.running_mean.flatten() for layer in self.layers])
        variances = torch.cat([layer.running_var.flatten() for layer in self.layers])
        return torch.stack([means, variances]).to("cpu", torch.float32)

    def put_back(self, flat: torch.Tensor) -> None:
        """Put back what `running` returned."""
        self._write(flat)

    def begin_at(self, flat: torch.Tensor, count: int) -> None:
        """Write what `running` returned once, and let it count for this many samples, at most a window of them."""
        self._write(flat)
        if self.window is not None:
            # What goes into the window is without the source's share, which every average is given anew.
            apart = (flat.double() - self.share * self.source.double()) / (1 - self.share)
            apart[1].clamp_(min=0.0)  # rounding
            self._entries = [(min(count, self.window), apart.float())]
        self.started = True

    def _moved(self, flat: torch.Tensor, count: int) -> torch.Tensor:
        """Return the running statistics after a batch that was just taken in."""
        if self.window is not None:
            return torch.lerp(_average(self._entries), self.source.double(), self.share)
        if not self.started:
            return flat
        return torch.lerp(self.running(), flat, self._rate(count))

    def _rate(self, count: int) -> float:
        return 1.0 - float((1.0 - self.momentum) ** (count / self.batch))

    def _merges(self, count: int, reset: bool) -> list[Merge]:
        """Return for each layer what its running statistics are after a batch of `count` samples."""
        if self.window is not None:
            kept = [] if reset else self._kept(self._entries, self.window - count)
            samples = sum(known for known, _ in kept)
            rate = count / (samples + count)
            flat = _average(kept) if kept else None
        elif self.started:
            rate, flat = self._rate(count), self.running()
        else:
            rate, flat = 1.0, None
        union = self.window is not None
        known = self.source if flat is None else flat.float()  # at a rate of 1 it does not matter which
        return [
            with_share_of(merge_of(there, rate, union=union), source, self.share)
            for there, source in zip(
                parts_of(known, self.layers), parts_of(self.source, self.layers), strict=True
            )
        ]

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        """Return the window as tensors, and counts, for `load`; running statistics are the layers' own."""
        tensors = {f"window.{i}": flat.clone() for i, (_, flat) in enumerate(self._entries)}
        counts = [count for count, _ in self._entries]
        return tensors, {"started": self.started, "counts": counts}

    def expected_shapes(self, values: Mapping[str, Any]) -> dict[str, torch.Size]:
        """Return which tensors go with values that `state` returned."""
        total = sum(layer.running_mean.numel() for layer in self.layers)
        return {f"window.{i}": torch.Size((2, total)) for i in range(len(values["counts"]))}

    def load(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.started = values["started"]
        self._entries = [(count, tensors[f"window.{i}"].clone()) for i, count in enumerate(values["counts"])]

    @staticmethod
    def _kept(entries: list[tuple[int, torch.Tensor]], room: int) -> list[tuple[int, torch.Tensor]]:
        """Return the newest entries, without the oldest as long as the others fill the room."""
        entries = list(entries)
        total = sum(count for count, _ in entries)
        while entries and total - entries[0][0] >= room:
            total -= entries.pop(0)[0]
        return entries

    def _write(self, flat: torch.Tensor) -> None:
        for layer, (mean, variance) in zip(self.layers, parts_of(flat, self.layers), strict=True):
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(variance)


def parts_of(flat: torch.Tensor, layers: Sequence[AdaptiveBatchNorm]) -> list[torch.Tensor]:
    """Return the means and variances (2, C) of every layer, where it is, out of those of all (2, total channels)."""
    parts = torch.split(flat, [layer.running_mean.numel() for layer in layers], dim=1)
    return [part.to(layer.running_mean.device) for layer, part in zip(layers, parts, strict=True)]


def _average(entries: list[tuple[int, torch.Tensor]]) -> torch.Tensor:
    """Return mean and variance of the union of batches, (2, total channels), float64."""
    counts = torch.tensor([count for count, _ in entries], dtype=torch.float64)
    stacked = torch.stack([flat for _, flat in entries]).double()
    share = (counts / counts.sum()).reshape(-1, 1)
    mean = (share * stacked[:, 0]).sum(0)
    # The variance of the union: within the batches, and between their means.
    variance = (share * (stacked[:, 1] + (stacked[:, 0] - mean) ** 2)).sum(0)
    return torch.stack([mean, variance])


def merge_of(known: torch.Tensor, rate: float, *, union: bool) -> Merge:
    """Return how what is known (2, C) and a batch's are averaged; the variance of a union has the means' too."""

    def merge(mean: torch.Tensor, variance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        between = rate * (1.0 - rate) * (mean - known[0]) ** 2 if union else 0.0
        return known[0].lerp(mean, rate), known[1].lerp(variance, rate) + between

    return merge


def with_share_of(merge: Merge, source: torch.Tensor, share: float) -> Merge:
    """Return what a merge makes of a batch's statistics, mixed with a share of the source model's (2, C)."""
    if not share:
        return merge

    def mixed(mean: torch.Tensor, variance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        merged = merge(mean, variance)
        return merged[0].lerp(source[0], share), merged[1].lerp(source[1], share)

    return mixed
