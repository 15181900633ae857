"""Which tokens of a batch count, for families whose sequences are padded to the longest prompt of the batch.

Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Padding = Callable[[Mapping[str, Any], int], "Tensor | None"]
"""From the arguments of a transformer's call and the number of tokens of a stream, which of them count: bools, (batch,
tokens), or None if all do."""


def masked_text(argument: str) -> Padding:
    """`argument` holds a mask of the text, (batch, text), and the picture comes behind the text."""

    def valid(arguments: Mapping[str, Any], tokens: int) -> Tensor | None:
        mask = arguments.get(argument)
        return None if mask is None else F.pad(mask.bool(), (0, tokens - mask.shape[1]), value=True)

    return valid


def as_long_as(lengths: Tensor, most: int | Tensor, tokens: int) -> Tensor:
    """Which of `tokens` count where the padding is last: the longest text has `most` tokens, the others `lengths`."""
    return torch.arange(tokens, device=lengths.device) < (tokens - most + lengths)[:, None]
