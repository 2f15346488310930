"""Views: BatchNorm statistics with the source as prior, and the mean probability over mild views of each image.

A row of this project: how far a device gets by predicting alone, with several passes for each image. The statistics
are those of Schneider et al., "Improving robustness against common corruptions by covariate shift adaptation", NeurIPS
2020 (the row ``bn-prior``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import torch

from cema._util.checks import require, require_at_least
from cema.adapt.adaptable import AdaptableModel
from cema.adapt.optimizers import as_array
from cema.methods.base import Rates, StepResult, method
from cema.methods.bn import SHORT_PRIORS, own_statistics
from cema.ondevice.views import make_views, mean_logits, view_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from cema.methods.base import MethodContext
    from cema.models.spec import Model

__all__ = ["Views", "ViewsConfig"]

# What part of the width views are shifted by: 2 pixels of 32, 14 of 224.
_SHARE = 16


class ViewsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `Views`.

    Attributes
    ----------
    views : int
        How many views of each image are averaged, the image itself counted.
    shift : int, optional
        Pixels of the model's input by which views are shifted. None for a sixteenth of its width, rounded down, and at
        least 1.
    mirror : bool
        Whether every second view is a mirror image: not where left and right matter, as in digits, letters and signs.
    prior : float
        How many images the source's BatchNorm statistics count for beside those of the batch; 0 for the batch's alone.
    """

    views: int = 8
    shift: int | None = None
    mirror: bool = True
    prior: float = 16.0

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        require(self.views >= 1, "views", "a whole number of at least 1", self.views)
        if self.shift is not None:
            require(self.shift >= 1, "shift", "a whole number of at least 1, or none for a share", self.shift)
        require_at_least(self, 0, "prior", finite=True)


# A mirrored digit is another one, or none. Digits are 28 pixels wide, with a rim of paper around them to 32, so that a
# sixteenth of their own width is 1.
PAPERS: Rates = {"digits": {"shift": 1, "mirror": False}}


@method(
    "views",
    config=ViewsConfig,
    cost=10.0,
    colour="#d95f02",
    papers=PAPERS,
    short=SHORT_PRIORS,
)
class Views:
    r"""Average the probabilities of several views of each image, each view with BatchNorm statistics of its own.

    .. math:: z(x) = \log \frac{1}{V} \sum_v softmax(g(T_v x))

    where T_1 is the identity and the others shift the model's input by a few pixels, the nearest pixels coming in at
    the rim, or mirror it, or both.

    A batch is shown to the model one view at a time. In every such pass, each BatchNorm layer mixes the source's
    statistics with those of what it is given (see `cema.methods.bn.BN`): every view of a batch has batch statistics of
    its own, and nothing is kept from one batch to the next. A model without BatchNorm is left as it is, and its views
    alone are averaged. Nothing is learned and nothing uploaded; all passes are counted.

    Parameters
    ----------
    edge : cema.models.spec.Model
        The source; copied.
    config : ViewsConfig, optional
        None for the defaults.
    context : Context
        Device and precision.

    Attributes
    ----------
    views : tuple of cema.ondevice.views.View
        The image itself first.
    """

    def __init__(self, edge: Model, config: ViewsConfig | None = None, *, context: MethodContext) -> None:
        self.config = config or ViewsConfig()
        self.model = AdaptableModel(edge, device=context.device, dtype=context.dtype)
        shift = self.config.shift or max(1, self.model.preprocessing.width // _SHARE)
        self.views = make_views(self.config.views, shift=shift, mirror=self.config.mirror)

    @torch.no_grad()
    def step(self, images: Sequence[np.ndarray], *, edge: int = 0) -> StepResult:
        """Predict a batch; the logits are the logarithm of the mean probabilities."""
        inputs = self.model.inputs(images)
        pixels = inputs.cpu().numpy()
        logits = []
        with own_statistics(self.model.layers.values(), self.config.prior, len(images)):
            for view in self.views:
                # Laid out in memory as the model's inputs are.
                shown = torch.empty_like(inputs).copy_(torch.from_numpy(view_of(pixels, view)))
                logits.append(as_array(self.model.run(shown)))
        return StepResult(
            logits=mean_logits(logits),
            uploads=0,
            bytes_up=0,
            forwards=len(self.views) * len(images),
            backwards=0,
        )
