"""The Vision Transformers for handwritten digits."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from cema.errors import ModelError
from cema.models.digits import DIGITS_LABELS, DIGITS_PREPROCESSING

__all__ = ["DigitsVit", "VitShape", "digits_vit_net"]

_PATCH = 4


class VitShape(NamedTuple):
    """How large a Vision Transformer is.

    Attributes
    ----------
    width : int
        Channels of a token; a multiple of `heads` and of 4.
    depth : int
        Blocks.
    heads : int
        Attention heads of a block.
    hidden : int
        Channels inside a block's perceptron.
    """

    width: int
    depth: int
    heads: int
    hidden: int


_SHAPES: dict[str, VitShape] = {
    "digits-vit": VitShape(width=64, depth=4, heads=4, hidden=128),
    "digits-vit-foundation": VitShape(width=128, depth=4, heads=4, hidden=512),
}


class _Attention(nn.Module):
    """Self-attention of every token to every token, in several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (N, T, width) to the same shape."""
        # (N, T, 3 width) -> three times (N, heads, T, width / heads)
        parts = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        projected: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return projected


class _Block(nn.Module):
    """Attention, then a perceptron on each token; each behind a LayerNorm and beside a shortcut."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width, eps=1e-6)
        self.attn = _Attention(shape.width, shape.heads)
        self.norm2 = nn.LayerNorm(shape.width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(shape.width, shape.hidden), nn.GELU(), nn.Linear(shape.hidden, shape.width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (N, T, width) to the same shape."""
        tokens = tokens + self.attn(self.norm1(tokens))
        result: Tensor = tokens + self.mlp(self.norm2(tokens))
        return result


class DigitsVit(nn.Module):
    """A plain Vision Transformer on 32 x 32 grey pixels: 64 patches of 4 x 4, and the mean of their tokens.

    LayerNorm comes before attention and perceptron, positions are learned, and there is no dropout. The names
    of the layers are those of common Vision Transformers: ``blocks.0.norm1``, ..., ``norm``, ``head``.

    Parameters
    ----------
    shape : VitShape
        How large it is.

    Raises
    ------
    ValueError
        When the width is no multiple of the number of heads, or of 4.

    References
    ----------
    Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", ICLR 2021.
    """

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        if shape.width % shape.heads or shape.width % 4:
            raise ValueError(
                f"expected a width that is a multiple of 4 and of the {shape.heads} heads, got {shape.width}; "
                "choose another width or number of heads"
            )
        cells = DIGITS_PREPROCESSING.height // _PATCH
        self.patches = nn.Conv2d(1, shape.width, _PATCH, stride=_PATCH)
        self.positions = nn.Parameter(_waves(cells, shape.width))
        self.blocks = nn.Sequential(*(_Block(shape) for _ in range(shape.depth)))
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)
        self.head = nn.Linear(shape.width, len(DIGITS_LABELS))
        self.apply(_initialise)

    def embed(self, images: Tensor) -> Tensor:
        """Map normalised images (N, 1, 32, 32) to tokens with their positions (N, 64, width)."""
        tokens: Tensor = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        return tokens

    def classify(self, tokens: Tensor) -> Tensor:
        """Map tokens (N, T, width), all of an image or some, to logits (N, 10)."""
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (N, 1, 32, 32) to logits (N, 10)."""
        return self.classify(self.embed(images))


def digits_vit_net(name: str) -> DigitsVit:
    """Build one of the two architectures with fresh random weights.

    Parameters
    ----------
    name : str
        ``"digits-vit"`` or ``"digits-vit-foundation"``.

    Returns
    -------
    DigitsVit
        In training mode.

    Raises
    ------
    ModelError
        If there is no such architecture.
    """
    if name not in _SHAPES:
        raise ModelError(f"no digits transformer is called {name!r}; expected one of {', '.join(_SHAPES)}")
    return DigitsVit(_SHAPES[name])


def _waves(cells: int, width: int) -> Tensor:
    # Positions are learned, but from 3,000 images they are learned sooner where neighbours begin alike: half of the
    # channels hold sines and cosines of the row, half of the column. Shape (1, cells * cells, width).
    periods = 10_000 ** (torch.arange(width // 4) / (width // 4))
    angles = torch.arange(cells).unsqueeze(1) / periods
    axis = torch.cat([angles.sin(), angles.cos()], 1)
    rows = axis.unsqueeze(1).expand(-1, cells, -1)
    columns = axis.unsqueeze(0).expand(cells, -1, -1)
    return torch.cat([rows, columns], 2).reshape(1, cells * cells, width)


def _initialise(layer: nn.Module) -> None:
    # Linear maps as in the paper's published code; the patches as the linear map that they are.
    if isinstance(layer, nn.Linear):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    elif isinstance(layer, nn.Conv2d):
        bound = math.sqrt(6 / (layer.weight[0].numel() + layer.out_channels))
        nn.init.uniform_(layer.weight, -bound, bound)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
