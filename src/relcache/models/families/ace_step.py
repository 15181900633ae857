"""ACE-Step 1.5 (ACE Studio and StepFun, arXiv 2602.00744): attention, cross-attention and feed-forward of each block.

Latent audio lies along `width`.
"""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    channels = config.audio_acoustic_hidden_dim
    return {
        "hidden_states": torch.randn(size.batch, size.width, channels),
        "timestep": torch.full((size.batch,), 0.5),
        "timestep_r": torch.full((size.batch,), 0.5),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.encoder_hidden_size or config.hidden_size),
        "context_latents": torch.randn(size.batch, size.width, config.in_channels - channels),
    }


ACE_STEP = ModelSpec(
    class_name="AceStepTransformer1DModel",
    modules=("layers.*.self_attn", "layers.*.cross_attn", "layers.*.mlp"),
    conditioning=("encoder_hidden_states",),
    inputs=_inputs,
    text=256,
)
