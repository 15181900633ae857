"""`relcache presets`: the shipped presets, and those in files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from relcache.cli.terminal import plain_errors, say, verdict


def list_presets(
    file: Annotated[list[Path] | None, typer.Argument(help="Files of presets to list after the shipped ones.")] = None,
) -> None:
    """List the shipped presets and those in files: their models, schedulers and full steps."""
    with plain_errors():
        from relcache.presets import Preset, shipped

        presets = {**shipped(), **{str(path): Preset.load(path) for path in file or []}}
        for name, preset in presets.items():
            models = " and ".join(model.class_name for model in preset.origin.models.values())
            budget = f"{len(preset.full_steps)} of {preset.steps} steps"
            say(f"{name}: {budget} of {models}, {preset.origin.scheduler.class_name}")
            say(f"  full steps: {', '.join(map(str, preset.full_steps))}")
            say(f"  {verdict(preset)}")
