"""Entry point of the command `relcache`."""

from __future__ import annotations

import sys

EXTRA = {
    "typer", "rich", "diffusers", "transformers", "accelerate", "torchmetrics", "matplotlib", "jinja2", "yaml",
    "platformdirs", "tomli", "relcache_models",
}  # fmt: skip
"""The modules of the extra `cli`."""


def main() -> None:
    """Run the command line, or say which extra it needs."""
    try:
        from relcache.cli.app import app

        app()
    except ModuleNotFoundError as error:
        if error.name not in EXTRA:  # or something that an installed package lacks
            raise
        sys.exit(f"the relcache command needs {error.name}, which is not installed: pip install 'relcache[cli]'")


if __name__ == "__main__":
    main()
