"""`relcache environment`: the environments of metrics that conflict with diffusers."""

from __future__ import annotations

from typing import Annotated

import typer

from relcache.cli.terminal import plain_errors, say


def make_environment(
    name: Annotated[str, typer.Argument(help="image-reward or vbench.")],
    python: Annotated[str | None, typer.Option(help="Another Python, from 3.8 to 3.11.")] = None,
) -> None:
    """Make the environment that a metric needs; bench then uses it."""
    with plain_errors():
        from relcache.bench.quality.external import make

        say(f"made {make(name, python, tell=say)}")
