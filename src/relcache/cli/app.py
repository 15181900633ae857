"""The command `relcache`: its subcommands."""

from __future__ import annotations

import platform

import torch
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
    help="Sample diffusion transformers faster by Relational Feature Caching.",
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


@app.command()
def version() -> None:
    """Print the versions of relcache, torch and Python."""
    say(f"relcache {__version__}, torch {torch.__version__}, Python {platform.python_version()}")
