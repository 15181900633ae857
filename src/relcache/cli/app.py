"""The command `relcache`: its subcommands."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Annotated

import typer

from relcache import __version__
from relcache.cli.analyze import record_analysis
from relcache.cli.bench import bench_app
from relcache.cli.calibrate import calibrate_method
from relcache.cli.demo import run_demo
from relcache.cli.environment import make_environment
from relcache.cli.figures import draw_figures
from relcache.cli.models import list_models
from relcache.cli.presets import list_presets
from relcache.cli.sample import sample_pictures
from relcache.cli.terminal import say

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.command("demo")(run_demo)
app.command("analyze")(record_analysis)
app.command("figures")(draw_figures)
app.command("environment")(make_environment)
app.command("sample")(sample_pictures)
app.command("calibrate")(calibrate_method)
app.command("presets")(list_presets)
app.command("models")(list_models)
app.add_typer(bench_app, name="bench")


def _print_version(asked: bool) -> None:
    if asked:
        say(f"relcache {__version__}, torch {metadata.version('torch')}, Python {platform.python_version()}")
        raise typer.Exit


@app.callback()
def options_of_all(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print versions.")
    ] = False,
) -> None:
    """Sample diffusion transformers faster by Relational Feature Caching."""
