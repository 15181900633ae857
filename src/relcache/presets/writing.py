"""Write files whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path` through a temporary file beside it.

    Raises:
        OSError: the file cannot be written; the message names `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(f"{path} cannot be written ({reason(error)}); its earlier content is kept") from error
        raise


def reason(error: OSError) -> str:
    """Return the reason of an error, in words."""
    return error.strerror or str(error)
