"""LTX-2 (Lightricks, arXiv 2601.03233): attention and feed-forward of the video and of the audio, and across them."""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    tokens = size.frames * size.height * size.width
    seconds = ((size.frames - 1) * config.vae_scale_factors[0] + 1) / 24
    audio_tokens = round(seconds * config.audio_sampling_rate / config.audio_hop_length / config.audio_scale_factor)
    # later versions project the text before it comes to the transformer
    text_dim, audio_text_dim = config.cross_attention_dim, config.audio_cross_attention_dim
    if config.use_prompt_embeddings:
        text_dim = audio_text_dim = config.caption_channels
    timestep, mask = torch.full((size.batch,), 500.0), torch.ones(size.batch, size.text)
    return {
        "hidden_states": torch.randn(size.batch, tokens, config.in_channels),
        "audio_hidden_states": torch.randn(size.batch, audio_tokens, config.audio_in_channels),
        "encoder_hidden_states": torch.randn(size.batch, size.text, text_dim),
        "audio_encoder_hidden_states": torch.randn(size.batch, size.text, audio_text_dim),
        "timestep": timestep,
        "sigma": timestep,
        "encoder_attention_mask": mask,
        "audio_encoder_attention_mask": mask,
        "num_frames": size.frames,
        "height": size.height,
        "width": size.width,
        "audio_num_frames": audio_tokens,
        "use_cross_timestep": True,
    }


LTX2 = ModelSpec(
    class_name="LTX2VideoTransformer3DModel",
    modules=(
        "transformer_blocks.*.attn1",
        "transformer_blocks.*.audio_attn1",
        "transformer_blocks.*.attn2",
        "transformer_blocks.*.audio_attn2",
        "transformer_blocks.*.audio_to_video_attn",
        "transformer_blocks.*.video_to_audio_attn",
        "transformer_blocks.*.ff",
        "transformer_blocks.*.audio_ff",
    ),
    conditioning=(
        "encoder_hidden_states",
        "audio_encoder_hidden_states",
        "isolate_modalities",
        "spatio_temporal_guidance_blocks",
        "perturbation_mask",
    ),
    inputs=_inputs,
    text=1024,
)
