"""The paper's models with random weights, and the timed denoising loop on one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, NamedTuple

import diffusers
import torch
from torch import Tensor, nn

from relcache.bench.comparison.arguments import call_options
from relcache.bench.comparison.benchmarks import SMALL
from relcache.bench.sampling.pipelines import precision_of, silent_imports
from relcache.checks import did_you_mean
from relcache.models import SPECS, ModelSpec, Size

PATCH = 16  # pixels along a token's side: 8 for each of the 2 latents of a patch


class Subject(NamedTuple):
    """A model of the paper: class, config, size, the config's names of block counts, and a few blocks for a CPU.

    `tiny` and `tiny_size` replace parts of its config and size for a model with all blocks but hardly any features.
    """

    class_name: str
    config: dict[str, Any]
    size: Size
    blocks: tuple[str, ...]
    few: tuple[int, ...]
    tiny: dict[str, Any]
    tiny_size: dict[str, int]


SUBJECTS = {
    "dit": Subject(
        "DiTTransformer2DModel", {"num_layers": 28, "sample_size": 32, "out_channels": 8}, Size(8, 32, 32),
        ("num_layers",), (4,),
        {"num_attention_heads": 1, "attention_head_dim": 8, "sample_size": 2}, {"batch": 1, "height": 2, "width": 2},
    ),
    "flux": Subject(
        "FluxTransformer2DModel", {"num_layers": 19, "num_single_layers": 38, "guidance_embeds": True},
        Size(1, 64, 64, text=512), ("num_layers", "num_single_layers"), (2, 4),
        {"in_channels": 4, "num_attention_heads": 1, "attention_head_dim": 8, "axes_dims_rope": (2, 2, 4),
         "joint_attention_dim": 4, "pooled_projection_dim": 4}, {"batch": 1, "height": 2, "width": 2, "text": 1},
    ),
    "hunyuan": Subject(
        "HunyuanVideoTransformer3DModel", {"num_layers": 20, "num_single_layers": 40, "guidance_embeds": True},
        Size(1, 60, 80, 9, 256), ("num_layers", "num_single_layers"), (2, 4),
        {"in_channels": 4, "out_channels": 4, "num_attention_heads": 1, "attention_head_dim": 8,
         "rope_axes_dim": (2, 2, 4), "text_embed_dim": 4, "pooled_projection_dim": 4},
        {"batch": 1, "height": 2, "width": 2, "frames": 1, "text": 1},
    ),
}  # fmt: skip


@dataclass
class Course:
    """The loop that every contestant runs: a model, compiled or not, and the arguments of each step's call."""

    about: str
    model: nn.Module
    spec: ModelSpec
    calls: list[dict[str, Any]]
    compiled: bool = False

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def course_of(
    name: str,
    device: str,
    dtype: str,
    steps: int,
    blocks: Sequence[int] | None = None,
    size: str | None = None,
    frames: int | None = None,
    batch: int | None = None,
    compiled: bool = False,
) -> Course:
    """Return the loop on one of SUBJECTS with random weights.

    Args:
        blocks: number of blocks of each kind; [] takes all, None a few on a CPU and all on a GPU.
        size: HEIGHTxWIDTH in pixels, or one number for both.
        compiled: whether to use torch.compile.

    Raises:
        ValueError: an unknown model or dtype, a wrong size, or blocks that do not fit the model's kinds.
    """
    subject, precision = subject_of(name, size, frames, batch), precision_of(dtype)
    if blocks is None:
        blocks = subject.few if torch.device(device).type == "cpu" else []
    if blocks and len(blocks) != len(subject.blocks):
        raise ValueError(f"{name} has blocks of {len(subject.blocks)} kinds; --blocks names {len(blocks)}")
    config = subject.config | dict(zip(subject.blocks, blocks, strict=bool(blocks)))
    latents = subject.size
    model, spec = model_of(subject._replace(config=config), precision, device)
    numbers = " + ".join(str(config[kind]) for kind in subject.blocks)
    about = (
        f"{subject.class_name}, {numbers} blocks, {latents.height * 8} x {latents.width * 8}"
        f"{f', {4 * latents.frames - 3} frames' if latents.frames > 1 else ''}, "
        f"batch {latents.batch}, {dtype}, {device_name(device)}"
    )
    if compiled:
        about += ", compiled"
        model.compile()
        torch._dynamo.config.recompile_limit = 64  # two graphs for each contestant, and one for the plain model
    return Course(about, model, spec, calls_of(model, spec, latents, steps), compiled)


def device_name(device: str) -> str:
    """Return a device's name for a table."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def subject_of(name: str, size: str | None = None, frames: int | None = None, batch: int | None = None) -> Subject:
    """Return the subject of this name, at its own size or at a size in pixels; raise ValueError if either is wrong."""
    if name not in SUBJECTS:
        shipped = [task.model for task in SMALL.values()]
        hint = did_you_mean(name, [*SUBJECTS, *shipped])
        raise ValueError(
            f"unknown model {name!r}: {hint}there are {', '.join(SUBJECTS)}, with random weights; to time a pipeline, "
            f"give {', '.join(shipped)}, a folder or a hub id"
        )
    subject = SUBJECTS[name]
    latents = replace(subject.size, batch=batch or subject.size.batch)
    if size is not None:
        height, width = itemgetter("height", "width")(call_options(None, None, size, None, []))
        if height % PATCH or width % PATCH:
            raise ValueError(f"--size of random weights takes multiples of {PATCH} pixels, got {size!r}")
        if name == "dit" and height != width:
            raise ValueError(f"dit makes square pictures: --size takes one number, got {size!r}")
        latents = replace(latents, height=height // 8, width=width // 8)
    if frames is not None:
        if subject.size.frames == 1:
            raise ValueError(f"--frames has no meaning with {name}, which makes pictures")
        if frames % 4 != 1:
            raise ValueError(f"--frames of {name} is one more than a multiple of 4, such as 33; got {frames}")
        latents = replace(latents, frames=(frames - 1) // 4 + 1)
    config = subject.config | ({"sample_size": latents.height} if "sample_size" in subject.config else {})
    return subject._replace(size=latents, config=config)


def class_of(subject: Subject) -> Any:
    """Return the class of a subject's model in diffusers."""
    with silent_imports():
        return getattr(diffusers, subject.class_name)


def model_of(subject: Subject, dtype: torch.dtype, device: str) -> tuple[nn.Module, ModelSpec]:
    """Return the model of a subject with small random weights, and its spec."""
    with torch.device("meta"):
        model = class_of(subject)(**subject.config)
    spec = next(spec for spec in SPECS if spec.class_name == subject.class_name)
    return with_random_weights(model, dtype, device), spec


def with_random_weights(model: Any, dtype: torch.dtype, device: str) -> nn.Module:
    """Move a model from the meta device to a real one, with small random weights."""
    tables = type(model)(**model.config) if any(True for _ in model.buffers()) else None
    model = model.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(0, 0.02, generator=generator)
    for name, buffer in tables.named_buffers() if tables is not None else ():
        model.get_buffer(name).copy_(buffer)
    return model


def calls_of(model: nn.Module, spec: ModelSpec, size: Size, steps: int) -> list[dict[str, Any]]:
    """Return the arguments of each step: the sample drifts from one noise to another, the timestep falls."""
    device = next(model.parameters()).device
    begin, end = (_on(device, spec.example(model, size)) for _ in range(2))
    sample = spec.sample or "hidden_states"
    calls = []
    for step in range(steps):
        share = step / steps
        inputs = begin | {sample: torch.lerp(begin[sample], end[sample], 0.2 * share)}
        time = begin[spec.timestep]
        inputs[spec.timestep] = (time * (1 - 0.98 * share)).to(time.dtype)
        calls.append(inputs)
    return calls


def _on(device: torch.device, inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
