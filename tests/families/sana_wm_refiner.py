from typing import Any

from families import VIDEO, Family
from families.ltx2 import LTX2


def _shared_positions(inputs: dict[str, Any]) -> dict[str, Any]:
    """Positions without a batch of their own, so that they fit one sample as well as two."""
    return inputs | {"video_rotary_emb": tuple(part[:1] for part in inputs["video_rotary_emb"])}


FAMILY = Family("SanaWMLTX2RefinerTransformer3DModel", LTX2, units=2 * 3, size=VIDEO, alter=_shared_positions)
