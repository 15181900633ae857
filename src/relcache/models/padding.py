"""Find the tokens that count, in families that pad a sequence to the longest prompt of the batch.

Nothing here synchronizes with the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Padding = Callable[[Mapping[str, Any], int], "Tensor | None"]
"""A function of the arguments of a transformer's call and the number of tokens of a stream.

It returns the tokens that count, (batch, tokens), bool, or None if all of them count.
"""


def masked_text(argument: str) -> Padding:
    """Return the `Padding` of a sequence of text and image, from the text's mask (batch, text) in `argument`."""

    def valid(arguments: Mapping[str, Any], tokens: int) -> Tensor | None:
        mask = arguments.get(argument)
        return None if mask is None else F.pad(mask.bool(), (0, tokens - mask.shape[1]), value=True)

    return valid


def before_padding(lengths: Tensor, most: int | Tensor, tokens: int) -> Tensor:
    """Return the tokens that count before the padding at the end: (batch, tokens), bool.

    `lengths` (batch,), int64, are the numbers of tokens of the texts, and `most` is the greatest of them.
    """
    return torch.arange(tokens, device=lengths.device) < (tokens - most + lengths)[:, None]
