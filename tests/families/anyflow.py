from typing import Any

import torch

from families import Family
from relcache import Size

_CONFIG = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 12,
    "freq_dim": 32,
    "ffn_dim": 48,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}


class _Nothing:
    """Keys and values of no chunk, for a batch of any size."""

    def __getitem__(self, place: Any) -> torch.Tensor:
        return torch.empty(0)


def _first_chunk(inputs: dict[str, Any]) -> dict[str, Any]:
    nothing = {"full_cache": _Nothing(), "compressed_cache": _Nothing()}
    return inputs | {"kv_cache": dict.fromkeys(inputs["kv_cache"], nothing)}


FAMILIES = [
    Family("AnyFlowTransformer3DModel", _CONFIG, units=2 * 3, size=Size(batch=2, height=4, width=6, frames=3, text=5)),
    Family(
        "AnyFlowFARTransformer3DModel",
        _CONFIG | {"chunk_partition": (1, 3, 3)},
        units=2 * 3,
        size=Size(batch=2, height=4, width=8, frames=3, text=5),
        alter=_first_chunk,
    ),
]
