"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[str | None, typer.Option(help="A shipped model, a folder or a hub id; by default a shipped one.")]
Prompts = Annotated[list[str] | None, typer.Option(help="A prompt; give the option again for more.")]
Steps = Annotated[int, typer.Option(min=1, help="Denoising steps.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale; by default the model's own.")]
Size = Annotated[str | None, typer.Option(help="HEIGHTxWIDTH in pixels, or one number for both.")]
Frames = Annotated[int | None, typer.Option(min=1, help="Frames of a clip.")]
Option = Annotated[list[str] | None, typer.Option(help="Argument name=value of the call; give it again for more.")]
Seed = Annotated[
    int, typer.Option(min=0, max=2**63 - 1, help="Seed of the first sample; later samples count up from it.")
]
Batch = Annotated[int, typer.Option(min=1, help="Samples per batch.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …; auto takes a GPU if there is one.")]
Offload = Annotated[str, typer.Option(help="none, model, group or sequential; saves GPU memory, costs time.")]
Methods = Annotated[str | None, typer.Option(help="fora,rfc-1,rfc:order=2, …; all; or a TOML or YAML file.")]
Targets = Annotated[str | None, typer.Option(help="Comma-separated numbers of full steps; 14,8,7 for 50 steps.")]
CalibrationSamples = Annotated[int, typer.Option(min=1, help="Samples for finding thresholds.")]
Modules = Annotated[list[str] | None, typer.Option(help="A module to draw; give the option again for more.")]
DType = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]


def model_or_default(model: str | None, prompts: list[str] | None) -> str:
    """Return `model`, or the shipped model that takes prompts or, without any, classes."""
    from relcache.bench.sampling.pipelines import DEFAULT_MODEL

    return model or ("small-flux" if prompts else DEFAULT_MODEL)


def check_methods(methods: str | None, rivals: bool = True) -> None:
    """Check the names of methods before diffusers is imported.

    Raises:
        ValueError: an unknown name or wrong options.
    """
    from relcache.bench.comparison.entries import choose

    choose(methods, rivals)
