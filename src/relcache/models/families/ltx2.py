"""LTX-2 (Lightricks, arXiv 2601.03233): attention and feed-forward of the video and of the audio, and across them."""

from typing import Any

from relcache.models.inputs import Size, call, filled, latent_cells, random, text, where
from relcache.models.spec import ModelSpec


def _audio_tokens(config: Any, size: Size) -> int:
    seconds = ((size.frames - 1) * config.vae_scale_factors[0] + 1) / 24
    return round(seconds * config.audio_sampling_rate / config.audio_hop_length / config.audio_scale_factor)


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
    inputs=call(
        hidden_states=random("batch", latent_cells, "in_channels"),
        audio_hidden_states=random("batch", _audio_tokens, "audio_in_channels"),
        # later versions project the text before the transformer
        encoder_hidden_states=text(where("use_prompt_embeddings", "caption_channels", "cross_attention_dim")),
        audio_encoder_hidden_states=text(
            where("use_prompt_embeddings", "caption_channels", "audio_cross_attention_dim")
        ),
        timestep=filled(500.0),
        sigma=filled(500.0),
        encoder_attention_mask=filled(1.0, "batch", "text"),
        audio_encoder_attention_mask=filled(1.0, "batch", "text"),
        num_frames="frames",
        height="height",
        width="width",
        audio_num_frames=_audio_tokens,
        use_cross_timestep=True,
    ),
    text=1024,
)
