"""`relcache models`: the transformers that relcache supports."""

from __future__ import annotations

import json
import re
from typing import Annotated

import typer
from rich.markup import escape

from relcache.checks import nearest
from relcache.cli.terminal import console, say, say_error


def list_models(
    name: Annotated[str, typer.Argument(help="List only classes with this in their name.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the supported transformers, the units cached in each block, and the tests."""
    from rich.table import Table

    from relcache.models import SPECS, UNSUPPORTED, describe, streams

    specs = [spec for spec in SPECS if name.lower() in spec.class_name.lower()]
    unsupported = {known: reason for known, reason in UNSUPPORTED.items() if name.lower() in known.lower()}
    if not specs and not unsupported:
        known = {re.sub(r"(Video)?(Transformer|DiT).*", "", spec.class_name).lower(): spec.class_name for spec in SPECS}
        near = nearest(name, known, most=3, cutoff=0.4)
        hint = f"the nearest are {', '.join(known[match] for match in near)}" if near else "relcache models lists all"
        say_error(f"no class name contains {name!r}; {hint}")
        raise typer.Exit(1)
    if as_json:
        rows = [
            {"class": spec.class_name, "units": describe(spec), "streams": streams(spec), "pipelines": spec.pipelines}
            for spec in specs
        ]
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table(header_style="bold", box=None, padding=(0, 1), pad_edge=False)
    table.add_column("class", overflow="fold", ratio=3)
    table.add_column("units per block", overflow="fold", ratio=5)
    table.add_column("streams", justify="right", no_wrap=True)
    table.add_column("tested", overflow="fold", ratio=2)
    for spec in specs:
        tested = ["small model", *spec.pipelines]
        units = "\n".join(f"{stack}: {', '.join(parts)}" for stack, parts in describe(spec).items())
        table.add_row(spec.class_name, escape(units), str(streams(spec)), ", ".join(tested))
    console.print(table)
    say(f"{len(specs)} class{'es' * (len(specs) != 1)}")
    for class_name, reason in unsupported.items():
        say(f"not cached: {class_name}: {reason}")
