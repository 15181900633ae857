"""Real diffusers pipelines with random weights, built from `small_parts` without any download.

Each function returns the pipeline and the arguments of a call that makes one small picture or clip.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers
from small_parts import (
    Connectors,
    Stub,
    clip_encoder,
    clip_tokenizer,
    image_vae,
    llama_tokenizer,
    qwen_tokenizer,
    randomised,
    t5_encoder,
    t5_tokenizer,
    wan_transformer,
    wan_vae,
)
from torch import nn

PROMPT = "an owl on a wire"
Built = tuple[Any, dict[str, Any]]


def flux_transformer(**options: Any) -> nn.Module:
    config = {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "pooled_projection_dim": 16,
        "guidance_embeds": True,
        "axes_dims_rope": (4, 6, 6),
    }
    return randomised(diffusers.FluxTransformer2DModel(**{**config, **options}))


def flux(kind: type[Any] = diffusers.FluxPipeline, **options: Any) -> Built:
    pipe = kind(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        text_encoder=clip_encoder(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
        vae=image_vae(),
        transformer=flux_transformer(**options),
    )
    return pipe, {"prompt": PROMPT, "height": 16, "width": 24, "max_sequence_length": 24}


def hunyuan_video() -> Built:
    llama = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        pad_token_id=2,
    )
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=16,
        pooled_projection_dim=16,
        rope_axes_dim=(4, 6, 6),
        guidance_embeds=True,
    )
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    pipe = diffusers.HunyuanVideoPipeline(
        text_encoder=randomised(transformers.LlamaModel(llama)),
        tokenizer=llama_tokenizer(),
        transformer=randomised(transformer),
        vae=randomised(vae),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=clip_encoder(),
        tokenizer_2=clip_tokenizer(),
    )
    template = {"template": "{}", "crop_start": 0}
    return pipe, {
        "prompt": PROMPT,
        "height": 16,
        "width": 32,
        "num_frames": 9,
        "prompt_template": template,
        "max_sequence_length": 24,
    }


def wan(experts: int = 1) -> Built:
    pipe = diffusers.WanPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(transformers.UMT5EncoderModel),
        vae=wan_vae(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=wan_transformer(),
        transformer_2=wan_transformer(1) if experts == 2 else None,
        boundary_ratio=0.7 if experts == 2 else None,
    )
    call = {"prompt": PROMPT, "negative_prompt": "blurred", "height": 16, "width": 32, "num_frames": 5}
    return pipe, {**call, "max_sequence_length": 24}


def stable_diffusion_3() -> Built:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        out_channels=4,
        dual_attention_layers=(0,),
    )
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=randomised(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=image_vae(),
        text_encoder=clip_encoder(projection=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_encoder(projection=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )
    return pipe, {"prompt": PROMPT, "negative_prompt": "blurred", "height": 16, "width": 24}


def pixart() -> Built:
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=16,
        in_channels=4,
        cross_attention_dim=32,
        out_channels=8,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        use_additional_conditions=False,
    )
    pipe = diffusers.PixArtSigmaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(),
        vae=image_vae(),
        transformer=randomised(transformer),
        scheduler=diffusers.DDIMScheduler(beta_end=0.005, clip_sample=False),
    )
    call = {"prompt": PROMPT, "height": 16, "width": 16, "use_resolution_binning": False, "clean_caption": False}
    return pipe, {**call, "max_sequence_length": 24}


def qwen_image() -> Built:
    language = {
        "vocab_size": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 16}
    config = transformers.Qwen2_5_VLConfig(text_config=language, vision_config=vision, vocab_size=128)
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=64,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    pipe = diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=wan_vae(diffusers.AutoencoderKLQwenImage),
        text_encoder=randomised(transformers.Qwen2_5_VLForConditionalGeneration(config)),
        tokenizer=qwen_tokenizer(),
        transformer=randomised(transformer),
    )
    call = {"prompt": PROMPT, "negative_prompt": "blurred", "true_cfg_scale": 4.0, "height": 32, "width": 48}
    return pipe, {**call, "max_sequence_length": 24}


def cogvideox() -> Built:
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=16,
        num_layers=2,
        sample_width=4,
        sample_height=2,
        sample_frames=9,
        patch_size=2,
        max_text_seq_length=24,
        use_rotary_positional_embeddings=True,
    )
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    pipe = diffusers.CogVideoXPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(),
        vae=randomised(vae),
        transformer=randomised(transformer),
        scheduler=diffusers.CogVideoXDDIMScheduler(),
    )
    call = {"prompt": PROMPT, "negative_prompt": "blurred", "height": 16, "width": 32, "num_frames": 9}
    return pipe, {**call, "max_sequence_length": 24, "use_dynamic_cfg": True}


def ltx() -> Built:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=16,
    )
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False, False, False, False, False),
        upsample_residual=(False, False, False, False),
        upsample_factor=(1, 1, 1, 1),
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    pipe = diffusers.LTXPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=randomised(vae),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
        transformer=randomised(transformer),
    )
    call = {"prompt": PROMPT, "negative_prompt": "blurred", "height": 32, "width": 32, "num_frames": 9}
    return pipe, {**call, "max_sequence_length": 24}


def dit() -> Built:
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=1000,
    )
    scheduler = diffusers.DDIMScheduler(beta_end=0.005, clip_sample=False)
    pipe = diffusers.DiTPipeline(randomised(transformer), image_vae(), scheduler)
    return pipe, {"class_labels": [3], "guidance_scale": 1.5}


BUILDERS: dict[str, Callable[[], Built]] = {
    "FluxPipeline": flux,
    "HunyuanVideoPipeline": hunyuan_video,
    "WanPipeline": wan,
    "WanPipeline, two experts": lambda: wan(2),
    "StableDiffusion3Pipeline": stable_diffusion_3,
    "PixArtSigmaPipeline": pixart,
    "QwenImagePipeline": qwen_image,
    "CogVideoXPipeline": cogvideox,
    "LTXPipeline": ltx,
    "DiTPipeline": dit,
}


def ltx2() -> Built:
    """Return LTX-2, whose call makes a clip and its sound as latents."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = diffusers.LTX2VideoTransformer3DModel(
            in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32,
            audio_in_channels=8, audio_out_channels=8, audio_num_attention_heads=2, audio_attention_head_dim=8,
            audio_cross_attention_dim=16, num_layers=2, caption_channels=12,
        )  # fmt: skip
        embeds = torch.randn(1, 6, 12)
    latents = {"latents_mean": torch.zeros(8), "latents_std": torch.ones(8)}
    vae = Stub(
        spatial_compression_ratio=8, temporal_compression_ratio=2, config=SimpleNamespace(scaling_factor=1.0), **latents
    )
    sound = SimpleNamespace(sample_rate=16000, mel_hop_length=160, mel_bins=16, latent_channels=2)
    audio_vae = Stub(mel_compression_ratio=4, temporal_compression_ratio=4, config=sound, **latents)
    pipe = diffusers.LTX2Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae, audio_vae=audio_vae, text_encoder=None,
        tokenizer=None, connectors=Connectors(), transformer=randomised(transformer), vocoder=None,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    mask = torch.ones(1, 6)
    return pipe, {
        "prompt_embeds": embeds, "prompt_attention_mask": mask, "negative_prompt_embeds": -embeds,
        "negative_prompt_attention_mask": mask, "height": 32, "width": 32, "num_frames": 5, "frame_rate": 25.0,
        "guidance_scale": 3.0, "output_type": "latent",
    }  # fmt: skip
