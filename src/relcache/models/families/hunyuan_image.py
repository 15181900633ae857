"""HunyuanImage 2.1 and its refiner (Tencent): double blocks with joint attention, then single blocks."""

from typing import Any

import torch

from relcache.models.families.flux import DOUBLE_AND_SINGLE
from relcache.models.spec import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    # The refiner's patches have a third axis. The tokens of both text encoders are joined into one sequence, so the
    # first encoder's stand for all of them.
    sizes = (size.frames, size.height, size.width)[-len(config.patch_size) :]
    inputs = {
        "hidden_states": torch.randn(size.batch, config.in_channels, *sizes),
        "timestep": torch.full((size.batch,), 500.0),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.text_embed_dim),
        "encoder_attention_mask": torch.ones(size.batch, size.text, dtype=torch.long),
    }
    if config.guidance_embeds:
        inputs["guidance"] = torch.full((size.batch,), 3250.0)
    if config.use_meanflow:
        inputs["timestep_r"] = torch.full((size.batch,), 480.0)
    return inputs


HUNYUAN_IMAGE = ModelSpec(
    class_name="HunyuanImageTransformer2DModel",
    modules=DOUBLE_AND_SINGLE,
    conditioning=(
        "encoder_hidden_states",
        "encoder_attention_mask",
        "encoder_hidden_states_2",
        "encoder_attention_mask_2",
    ),
    inputs=_inputs,
    text=1000 + 128,  # of the two encoders
)
