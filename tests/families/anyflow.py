from typing import Any

import torch

from families import VIDEO, Family
from families.wan import WAN
from relcache import Size


class _Nothing:
    """Keys and values of no chunk, for a batch of any size."""

    def __getitem__(self, index: Any) -> torch.Tensor:
        return torch.empty(0)


def _first_chunk(inputs: dict[str, Any]) -> dict[str, Any]:
    nothing = {"full_cache": _Nothing(), "compressed_cache": _Nothing()}
    return inputs | {"kv_cache": dict.fromkeys(inputs["kv_cache"], nothing)}


FAMILIES = [
    Family("AnyFlowTransformer3DModel", WAN, units=2 * 3, size=VIDEO),
    Family(
        "AnyFlowFARTransformer3DModel",
        WAN | {"chunk_partition": (1, 3, 3)},
        units=2 * 3,
        size=Size(batch=2, height=4, width=8, frames=3, text=5),
        alter=_first_chunk,
    ),
]
