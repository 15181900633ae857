"""Write files whole or not at all, and read them with errors that name the file."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from relcache.presets.writing import reason, write_whole

LAST_PUNCTUATION = 0x206F  # symbols beyond it, such as emoji, may be the only difference of two texts
REMEDY = "delete it, and the same command makes it again"
PROBE = 1 << 16  # bytes that a folder must have room for
NUMBER = (int, float)
MAYBE_NUMBER = (int, float, type(None))
KINDS = {dict: "a table", list: "a list", str: "a text", int: "a whole number", float: "a number", type(None): "null"}

T = TypeVar("T")


def check_folder(folder: Path, names: Sequence[str] = ()) -> None:
    """Check that the files `names` can be written into `folder`, which need not exist. Leave nothing behind.

    Raises:
        ValueError: the path is a file or below one, cannot be written to, or has no room; or a name is a folder's.
    """
    try:
        existing = _existing(folder.absolute())
        if not existing.is_dir():
            raise ValueError(f"{folder} cannot be a folder: {existing} is not a folder; give another --out")
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".relcache-") as probe:
            probe.write(bytes(PROBE))
        taken = next((folder / name for name in names if (folder / name).is_dir()), None)
    except OSError as error:
        raise ValueError(f"nothing can be written to {folder} ({reason(error)}): give another --out") from error
    if taken is not None:
        raise ValueError(f"{taken} is a folder, but a file needs that name: give another --out")


def _existing(path: Path) -> Path:
    """Return `path` or its nearest existing parent; raise OSError for an impossible name."""
    while True:
        try:
            path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            path = path.parent
        except ValueError as error:  # a NUL in the name
            raise OSError(str(error)) from error
        else:
            return path


def write_or_elsewhere(folder: Path, write: Callable[[Path], T]) -> T:
    """Return `write(folder)`. If it fails, write the results into a temporary folder instead.

    Raises:
        OSError: `folder` cannot be written to; the message names the temporary folder.
    """
    try:
        return write(folder)
    except OSError as error:
        other = Path(tempfile.mkdtemp(prefix="relcache-"))
        try:
            write(other)
        except OSError:
            shutil.rmtree(other, ignore_errors=True)
            raise error from None
        raise OSError(f"{error}; the results were written to {other}") from error


@contextmanager
def reading(path: Path, remedy: str = REMEDY, state: str = "is damaged") -> Iterator[None]:
    """Turn an error of the block that reads `path` into a `ValueError` for users.

    Raises:
        ValueError: reading failed; the message names `path` and gives the `remedy`.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        cause = f"it has no {cause}" if isinstance(error, KeyError) else " ".join(cause.split()) or type(error).__name__
        raise ValueError(f"{path} {state} ({cause:.300}): {remedy}") from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON."""
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path, form: Any = object) -> Any:
    """Read a JSON file of a `form` that `check_form` describes.

    Raises:
        ValueError: the file is damaged or has another form; the message says to delete it.
    """
    with reading(path):
        value = json.loads(path.read_text(encoding="utf-8"))
        check_form(value, form)
    return value


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write `arrays` as a compressed .npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_whole(path, buffer.getvalue())


def read_arrays(path: Path, names: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz file, `names` among them.

    Raises:
        ValueError: the file is damaged or lacks one of `names`; the message says to delete it.
    """
    with reading(path), np.load(path, allow_pickle=False) as arrays:
        missing = [name for name in names if name not in arrays.files]
        if missing:
            raise ValueError(f"it holds no {missing[0]}")
        return {name: arrays[name] for name in arrays.files}


def check_form(value: Any, form: Any, where: str = "") -> None:
    """Check that `value`, read from JSON, has a form.

    A form is a type or a tuple of types, a list of one form, or a table of forms by key. The key `...` means all
    other keys. A value may have more keys than its form.

    Raises:
        ValueError: it has another form; the message says where, and names the expected and the actual form.
    """
    if isinstance(form, dict):
        _check_kind(value, (dict,), where)
        for key in form:
            if key is not ... and key not in value:
                raise ValueError(f"{where or 'it'} has no {key!r}")
        for key, part in value.items():
            if key in form or ... in form:
                check_form(part, form.get(key, form.get(...)), f"{where}[{key!r}]" if where else repr(key))
    elif isinstance(form, list):
        _check_kind(value, (list,), where)
        for number, part in enumerate(value, 1):
            check_form(part, form[0], f"entry {number}{f' of {where}' if where else ''}")
    else:
        _check_kind(value, form if isinstance(form, tuple) else (form,), where)


def _check_kind(value: Any, kinds: tuple[type, ...], where: str) -> None:
    bool_as_number = isinstance(value, bool) and int in kinds and bool not in kinds
    if not isinstance(value, kinds) or bool_as_number:
        expected = " or ".join(KINDS.get(kind, kind.__name__) for kind in kinds)
        actual = KINDS.get(type(value), type(value).__name__)
        raise ValueError(f"{where or 'it'} is {expected}, got {actual}")


def slug(text: str, longest: int = 60) -> str:
    """Return `text` in lower case as a part of a file's name.

    If letters are lost, as from Chinese or from a text longer than `longest`, six letters of a digest distinguish
    it. A text without Latin letters and digits becomes these six alone.
    """
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    lost = any((letter.isalnum() and not letter.isascii()) or ord(letter) > LAST_PUNCTUATION for letter in text)
    if not lost and 0 < len(words) <= longest:
        return words
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:6]
    return f"{words[: longest - 7].rstrip('-')}-{digest}".strip("-") if text.strip() else "empty"
