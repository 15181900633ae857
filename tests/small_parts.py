"""Small parts of diffusers pipelines with random weights: tokenizers, encoders, VAEs, transformers. No downloads."""

from __future__ import annotations

import string
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

CHARACTERS = string.ascii_letters + string.digits + string.punctuation


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw weights that are never zero and keep features at about the same size from block to block."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                parameter.copy_(centre + 0.1 * torch.randn(parameter.shape, generator=generator))
            else:
                scale = parameter[0].numel() ** -0.5
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval().requires_grad_(False)


def clip_tokenizer() -> transformers.CLIPTokenizer:
    tokens = [*CHARACTERS, *(f"{character}</w>" for character in CHARACTERS), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def t5_tokenizer() -> transformers.T5TokenizerFast:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in CHARACTERS)]
    return transformers.T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=64)


def llama_tokenizer() -> transformers.LlamaTokenizerFast:
    tokens = ["<unk>", "<s>", "</s>", "▁", "\n", " ", *CHARACTERS]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return transformers.LlamaTokenizerFast(vocab=vocabulary, merges=[], pad_token="</s>")


def qwen_tokenizer() -> transformers.Qwen2Tokenizer:
    tokens = [*CHARACTERS, "Ġ", "Ċ", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return transformers.Qwen2Tokenizer(vocab=vocabulary, merges=[])


def clip_encoder(projection: bool = False) -> nn.Module:
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    config = transformers.CLIPTextConfig(
        vocab_size=256,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=16,
        bos_token_id=len(clip_tokenizer()) - 2,
        eos_token_id=len(clip_tokenizer()) - 1,
    )
    return randomised(kind(config))


def t5_encoder(kind: type[nn.Module] = transformers.T5EncoderModel) -> nn.Module:
    config = transformers.UMT5Config if kind is transformers.UMT5EncoderModel else transformers.T5Config
    options = {"vocab_size": 128, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    return randomised(kind(config(**options)))


def image_vae(channels: int = 4) -> diffusers.AutoencoderKL:
    return randomised(
        diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            latent_channels=channels,
            norm_num_groups=2,
            layers_per_block=1,
            shift_factor=0.1,
        )
    )


def wan_vae(kind: type[nn.Module] = diffusers.AutoencoderKLWan) -> nn.Module:
    return randomised(
        kind(
            base_dim=3,
            z_dim=16,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
        )
    )


def wan_transformer(seed: int = 0) -> nn.Module:
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=16,
        out_channels=16,
        text_dim=16,
        freq_dim=32,
        ffn_dim=48,
        num_layers=2,
        rope_max_seq_len=32,
    )
    return randomised(transformer, seed)


class Stub(diffusers.ModelMixin):  # type: ignore[misc]
    """A part of a pipeline with attributes only, which computes nothing."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.__dict__.update(attributes)


class Connectors(Stub):
    """Return the text features unchanged, for pictures and for sound."""

    def forward(self, embeds: torch.Tensor, mask: torch.Tensor, **_: Any) -> tuple[torch.Tensor, ...]:
        return embeds, embeds, mask
