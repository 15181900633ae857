"""`relcache environment`: the environments of metrics that conflict with diffusers."""

from __future__ import annotations

from typing import Annotated

import typer

from relcache.cli.terminal import plain_errors, say


def make_environment(
    name: Annotated[str, typer.Argument(help="image-reward or vbench.")],
    python: Annotated[str | None, typer.Option(help="Another Python, from 3.8 to 3.11.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before installing.")] = False,
) -> None:
    """Make the environment that a metric needs; bench then uses it."""
    with plain_errors():
        from relcache.bench.quality.external import folder_of, make, packages_of

        say(f"This makes {folder_of(name)} anew, and installs there, with all that they need:")
        say(f"  {', '.join(packages_of(name))}")
        say("torch 2.1 comes with its CUDA libraries: about 2.5 GB to download and 6 GB on the disk.")
        if not yes and not typer.confirm("Install?"):
            raise typer.Exit(1)
        say(f"made {make(name, python, tell=say)}")
