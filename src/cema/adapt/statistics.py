"""Running statistics that stay consistent in deep networks.

A layer's statistics depend on how the layers before it normalise. If every layer's statistics move a little
towards the batch while the batch is normalised with the old ones, the layers describe inputs that no longer
occur, and a deep network falls apart until all have settled. Here the statistics of a batch are read in a
pass in which every layer normalises with the batch's own: they fit one another whatever was there before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cema.adapt.norm import AdaptiveBatchNorm

__all__ = ["RunningStatistics"]


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
    """

    def __init__(
        self,
        layers: Sequence[AdaptiveBatchNorm],
        *,
        start: Literal["first_batch", "source"],
        window: int | None,
        momentum: float,
        batch: int,
    ) -> None:
        self.layers = list(layers)
        self.window = window
        self.momentum = momentum
        self.batch = batch
        self.started = start == "source"
        self._entries: list[tuple[int, torch.Tensor]] = []
        if self.layers and self.started and window is not None:
            self._entries.append((window, self._gather_running()))

    def observe(self, count: int, *, reset: bool = False) -> bool:
        """Take in what the layers observed in the last forward pass over `count` samples.

        Parameters
        ----------
        count : int
            Samples.
        reset : bool
            Whether the window is cleared first, because it holds another domain.

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
            self._drop_old(self.window)
            self._write(self._average())
        elif self.started:
            rate = 1.0 - (1.0 - self.momentum) ** (count / self.batch)
            self._write(torch.lerp(self._gather_running(), flat, rate))
        else:
            self._write(flat)
        self.started = True
        return True

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

    def _drop_old(self, window: int) -> None:
        total = sum(count for count, _ in self._entries)
        while total - self._entries[0][0] >= window:
            total -= self._entries.pop(0)[0]

    def _average(self) -> torch.Tensor:
        counts = torch.tensor([count for count, _ in self._entries], dtype=torch.float64)
        stacked = torch.stack([flat for _, flat in self._entries]).double()
        share = (counts / counts.sum()).reshape(-1, 1)
        mean = (share * stacked[:, 0]).sum(0)
        # The variance of the union: within the batches, and between their means.
        variance = (share * (stacked[:, 1] + (stacked[:, 0] - mean) ** 2)).sum(0)
        return torch.stack([mean, variance])

    def _gather_running(self) -> torch.Tensor:
        means = torch.cat([layer.running_mean.flatten() for layer in self.layers])
        variances = torch.cat([layer.running_var.flatten() for layer in self.layers])
        return torch.stack([means, variances]).to("cpu", torch.float32)

    def _write(self, flat: torch.Tensor) -> None:
        sizes = [layer.running_mean.numel() for layer in self.layers]
        for layer, mean, variance in zip(self.layers, *(part.split(sizes) for part in flat), strict=True):
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(variance)
