"""HunyuanImage 2.1 and its refiner (Tencent): double blocks with joint attention, then single blocks."""

from typing import Any

import torch

from relcache.models.families.flux import DOUBLE_AND_SINGLE
from relcache.models.inputs import Size, call, filled, text, where
from relcache.models.spec import ModelSpec


def _latents(config: Any, size: Size) -> torch.Tensor:
    """Return latents of an image; the refiner's have frames too, as its patches have three axes."""
    lengths = (size.frames, size.height, size.width)[-len(config.patch_size) :]
    return torch.randn(size.batch, config.in_channels, *lengths)


HUNYUAN_IMAGE = ModelSpec(
    class_name="HunyuanImageTransformer2DModel",
    modules=DOUBLE_AND_SINGLE,
    conditioning=(
        "encoder_hidden_states",
        "encoder_attention_mask",
        "encoder_hidden_states_2",
        "encoder_attention_mask_2",
    ),
    inputs=call(
        hidden_states=_latents,
        timestep=filled(500.0),
        # The model joins the tokens of both text encoders; here the first has all of them.
        encoder_hidden_states=text("text_embed_dim"),
        encoder_attention_mask=filled(1, "batch", "text"),
        guidance=where("guidance_embeds", filled(3250.0)),
        timestep_r=where("use_meanflow", filled(480.0)),
    ),
    text=1000 + 128,  # of the two encoders
)
