"""Entry point of the command `relcache`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or say which extra it needs."""
    try:
        from relcache.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "relcache":
            raise
        sys.exit(f"the relcache command needs {error.name}, which is not installed: pip install 'relcache[cli]'")
    app()


if __name__ == "__main__":
    main()
