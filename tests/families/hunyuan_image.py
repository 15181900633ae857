from typing import Any

import torch

from families import VIDEO, Family

CONFIG = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "num_refiner_layers": 1,
    "text_embed_dim": 12,
    "rope_axes_dim": (8, 8),
}


def in_two_encoders(inputs: dict[str, Any]) -> dict[str, Any]:
    """Move two tokens of the text to the second encoder; one of them is padding in one sample."""
    first = inputs["encoder_hidden_states"][:, :-2]
    return {
        **inputs,
        "encoder_hidden_states": first,
        "encoder_attention_mask": torch.ones(first.shape[:2], dtype=torch.long),
        "encoder_hidden_states_2": torch.randn(first.shape[0], 2, 10),
        "encoder_attention_mask_2": torch.tensor([[1, 0], [1, 1]]),
    }


FAMILIES = [
    Family("HunyuanImageTransformer2DModel", {**CONFIG, "guidance_embeds": True, "use_meanflow": True}, 2 * 3 + 2),
    Family(
        "HunyuanImageTransformer2DModel",
        {**CONFIG, "text_embed_2_dim": 10},
        units=2 * 3 + 2,
        alter=in_two_encoders,
        variant="two encoders",
    ),
    Family(
        "HunyuanImageTransformer2DModel",
        {**CONFIG, "patch_size": (1, 1, 1), "rope_axes_dim": (4, 6, 6)},
        units=2 * 3 + 2,
        size=VIDEO,
        variant="refiner",
    ),
]
