"""Write trained models as folders that diffusers' pipelines load.

The DiT works on pixels, but `DiTPipeline` decodes with an `AutoencoderKL`. That class contains a group norm and a SiLU,
so leaving parts out does not make it the identity. `identity_autoencoder` chooses weights that make it the identity to
about 1e-4.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, DiTPipeline, DiTTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import nn

CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def make_identity(coder: nn.Module) -> None:
    """Set an encoder's or decoder's weights so that output channel 0 equals input channel 0.

    The four inner channels carry (a x, -a x, 1, -1). Their mean is zero, and their standard deviation is constant for
    small a. So the group norm only scales, and silu(x) - silu(-x) = x undoes the activation.
    """
    a = 0.01
    for module in coder.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)  # residual blocks thereby add nothing
    centre = (slice(None), 0, 1, 1)
    with torch.no_grad():
        coder.conv_in.weight[centre] = torch.tensor([a, -a, 0.0, 0.0])
        coder.conv_in.bias.copy_(torch.tensor([0.0, 0.0, 1.0, -1.0]))
        coder.conv_norm_out.weight.copy_(torch.tensor([1.0, 1.0, 0.0, 0.0]) / (a * 2**0.5))
        coder.conv_norm_out.bias.zero_()
        coder.conv_out.weight[0, :, 1, 1] = torch.tensor([1.0, -1.0, 0.0, 0.0])


def identity_autoencoder() -> AutoencoderKL:
    """Return an AutoencoderKL of one channel whose encoder mean and decoder are the identity, with variance e^-30."""
    vae = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=1,
        block_out_channels=(4,),
        norm_num_groups=1,
        layers_per_block=1,
        sample_size=28,
        scaling_factor=1.0,
        force_upcast=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    make_identity(vae.encoder)
    make_identity(vae.decoder)
    with torch.no_grad():
        vae.encoder.conv_out.bias[1] = -30.0
    return vae.eval()


def write(folder: Path, transformer: DiTTransformer2DModel) -> None:
    """Write the DiT's pipeline to `folder`, the transformer in half precision; keep a model card there."""
    scheduler = DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        clip_sample=False,
        prediction_type="epsilon",
    )
    pipeline = DiTPipeline(transformer.half().eval(), identity_autoencoder(), scheduler)
    names = {str(number): name for number, name in enumerate(CLASSES)}
    write_pipeline(folder, pipeline, id2label=names)


def write_pipeline(folder: Path, pipeline: DiffusionPipeline, **index_entries: object) -> None:
    """Write `pipeline` to `folder`, whole or not at all, with more entries in its index; keep other files there."""
    temporary, former = (folder.with_name(f".{folder.name}.{end}") for end in ("tmp", "former"))
    for left in (temporary, former):
        shutil.rmtree(left, ignore_errors=True)
    pipeline.save_pretrained(temporary)
    index = json.loads((temporary / "model_index.json").read_text()) | index_entries
    for name, entry in index.items():
        if isinstance(entry, list) and (temporary / name / "tokenizer.json").exists():
            entry[1] = make_tokenizer_portable(temporary / name)
        if isinstance(entry, list) and entry[1] == "CLIPTextModel":
            make_clip_portable(temporary / name)
    (temporary / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    for kept in folder.glob("*"):
        if kept.is_file() and kept.name != "model_index.json":
            shutil.copyfile(kept, temporary / kept.name)
    if folder.exists():
        os.replace(folder, former)
    os.replace(temporary, folder)
    shutil.rmtree(former, ignore_errors=True)


def make_tokenizer_portable(folder: Path) -> str:
    """Let transformers 4 load the tokenizer in `folder` too; return the name of its class in both versions.

    Version 5 calls the wrapper of a fast tokenizer `TokenizersBackend`, which is `PreTrainedTokenizerFast` in both. The
    CLIP tokenizer of version 4 reads the vocabulary and the merges from separate files.
    """
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    if config["tokenizer_class"] == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(config, indent=2) + "\n")
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    if model["type"] == "BPE":
        (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False) + "\n")
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return config["tokenizer_class"]


def make_clip_portable(folder: Path) -> None:
    """Let transformers 4 load the CLIP text model in `folder` too, by the published names of the weights."""
    path = folder / "model.safetensors"
    prefix = "text_model."
    weights = {prefix + name.removeprefix(prefix): value for name, value in load_file(path).items()}
    save_file(weights, path, {"format": "pt"})
