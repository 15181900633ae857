"""FramePack on HunyuanVideo (Tencent; FramePack: arXiv 2504.12626): double blocks with joint attention, then single
blocks. The earlier frames come before the noisy frames, and older frames are compressed more."""

import torch

from relcache.models.families.flux import DOUBLE_AND_SINGLE
from relcache.models.inputs import Recipe, call, filled, random, text, video, where
from relcache.models.spec import ModelSpec


def _history(frames: int) -> Recipe:
    return random("batch", "in_channels", frames, "height", "width")


def _indices(start: int, end: int) -> Recipe:
    """Make the indices of frames, counted from the end of the noisy frames."""
    return lambda config, size: torch.arange(1 + size.frames + start, 1 + size.frames + end)


HUNYUAN_VIDEO_FRAMEPACK = ModelSpec(
    class_name="HunyuanVideoFramepackTransformer3DModel",
    modules=DOUBLE_AND_SINGLE,
    conditioning=("encoder_hidden_states", "pooled_projections"),
    inputs=call(
        hidden_states=video("in_channels"),
        timestep=filled(500),
        encoder_hidden_states=text("text_embed_dim"),
        encoder_attention_mask=filled(True, "batch", "text"),
        pooled_projections=random("batch", "pooled_projection_dim"),
        image_embeds=random("batch", 729, "image_proj_dim"),
        indices_latents=lambda config, size: torch.arange(1, 1 + size.frames),
        # The history at full size is the first frame of the video, then the latest one.
        latents_clean=_history(2),
        indices_latents_clean=_indices(0, 2),
        latents_history_2x=_history(2),
        indices_latents_history_2x=_indices(2, 4),
        latents_history_4x=_history(16),
        indices_latents_history_4x=_indices(4, 20),
        guidance=where("guidance_embeds", filled(10000.0)),
    ),
    text=256,
)
