"""What the edge model is taught: the foundation model's answers, averaged over mild views of each image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cema.ondevice.batch import Batch
from cema.ondevice.views import make_views, mean_logits, view_of

if TYPE_CHECKING:
    from cema.adapt.trainable import TrainableModel
    from cema.ondevice.unsure import ViewSet

__all__ = ["Teacher"]


class Teacher:
    """The foundation model as it answers for new and for replayed uploads: without gradients, its statistics kept.

    An answer is made once for each upload and kept (`cema.adapt.taught`), so what views cost is paid once too.

    Parameters
    ----------
    model : TrainableModel
        The foundation model.
    config : ViewSet
        Which views.
    """

    def __init__(self, model: TrainableModel, config: ViewSet) -> None:
        self._model = model
        self._others = make_views(config.count, shift=config.shift, mirror=config.mirror)[1:]

    @torch.no_grad()
    def __call__(self, images: Batch, logits: torch.Tensor | None = None) -> torch.Tensor:
        """Answer for images.

        Parameters
        ----------
        images : Batch
            N uploads.
        logits : torch.Tensor, optional
            What the model has answered for them as they are, (N, classes), when it was asked already.

        Returns
        -------
        torch.Tensor
            Shape (N, classes), float32: logits whose softmax is the mean of the views' probabilities.
        """
        first = self._model.logits(images) if logits is None else logits
        if not self._others or not len(images):
            return first
        pixels = images.inputs(self._model.preprocessing)
        answers = [first.cpu().numpy()]
        for view in self._others:
            shown = self._model.as_inputs(view_of(pixels, view))
            answers.append(self._model.logits_of(shown).cpu().numpy())
        return torch.from_numpy(mean_logits(answers)).to(first.device)
