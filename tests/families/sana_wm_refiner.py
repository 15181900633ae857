from typing import Any

from families import Family
from relcache import Size


def _shared_positions(inputs: dict[str, Any]) -> dict[str, Any]:
    """Positions without a batch of their own, so that they fit one sample as well as two."""
    return inputs | {"video_rotary_emb": tuple(part[:1] for part in inputs["video_rotary_emb"])}


FAMILY = Family(
    "SanaWMLTX2RefinerTransformer3DModel",
    {
        "in_channels": 8,
        "out_channels": 8,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "cross_attention_dim": 32,
        "audio_in_channels": 6,
        "audio_out_channels": 6,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 8,
        "audio_cross_attention_dim": 16,
        "num_layers": 2,
        "caption_channels": 12,
    },
    units=2 * 3,
    size=Size(batch=2, height=4, width=6, frames=3, text=5),
    alter=_shared_positions,
)
