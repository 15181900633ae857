"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[
    str | None,
    typer.Option(help="A shipped model, a folder in diffusers' format, or a hub id; by default a shipped one."),
]
Steps = Annotated[int, typer.Option(min=1, help="Denoising steps.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale; by default the model's own.")]
Size = Annotated[str | None, typer.Option(help="HEIGHTxWIDTH in pixels, or one number for both.")]
Frames = Annotated[int | None, typer.Option(min=1, help="Frames of a clip.")]
Option = Annotated[
    list[str] | None,
    typer.Option(help="A further argument of the pipeline's call, as name=value; give it again for more."),
]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the first sample; the others count on from it.")]
Batch = Annotated[int, typer.Option(min=1, help="Samples per batch.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …; auto takes a GPU where there is one.")]
Offload = Annotated[str, typer.Option(help="none, model, group or sequential: less GPU memory, and slower.")]
Methods = Annotated[
    str | None,
    typer.Option(help="Comma-separated: fora, rfc-1, rfc (all orders), rfc:order=2, all; or a TOML or YAML file."),
]
Targets = Annotated[str | None, typer.Option(help="Comma-separated numbers of full steps; of 50 steps 14,8,7.")]
CalibrationSamples = Annotated[int, typer.Option(min=1, help="Samples that thresholds are found on.")]
DType = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
