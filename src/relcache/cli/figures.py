"""`relcache figures`: figures and sheets of saved results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from relcache.cli import options
from relcache.cli.terminal import plain_errors, say


def draw_figures(
    folder: Annotated[Path, typer.Argument(help="Folder written by bench, demo or analyze.")],
    module: options.Modules = None,
) -> None:
    """Draw figures and sheets again from saved results."""
    with plain_errors():
        from relcache.bench.files import check_folder
        from relcache.bench.pages.illustrations import illustrate

        if folder.is_dir():
            check_folder(folder)
        for path in illustrate(folder, module or ()):
            say(str(path))
