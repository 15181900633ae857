"""Files: written whole or not at all, in folders that were tried before; read with errors that name the file."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from relcache.bench.form import check_form
from relcache.presets.writing import reason, write_whole

AGAIN = "delete it, and the same command makes it again"
PROBE = 1 << 16  # bytes that a folder must have room for
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a text that begins so is a formula to spreadsheet programs
LONGEST_CELL = 1 << 24  # characters; Python's own limit is below that of long prompts

T = TypeVar("T")


def check_folder(folder: Path, names: Sequence[str] = ()) -> None:
    """See that files can be written into `folder`, which may be there or not; nothing is left behind.

    Args:
        folder: where a command is going to write.
        names: of its files; none may be a folder.

    Raises:
        ValueError: the path is a file, lies below one, cannot be written to, or has no room.
    """
    try:
        there = _existing(folder.absolute())
        if not there.is_dir():
            raise ValueError(f"{folder} cannot be a folder: {there} is none; give another --out")
        with tempfile.NamedTemporaryFile(dir=there, prefix=".relcache-") as probe:
            probe.write(bytes(PROBE))
        taken = next((folder / name for name in names if (folder / name).is_dir()), None)
    except OSError as error:
        raise ValueError(f"nothing can be written to {folder} ({reason(error)}): give another --out") from error
    if taken is not None:
        raise ValueError(f"{taken} is a folder, and a file of that name is to be written: give another --out")


def _existing(path: Path) -> Path:
    """`path`, or the nearest above it that is there; an OSError where there can be none of that name."""
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
    """What `write(folder)` returns; where it cannot write there, what was computed goes to a temporary folder.

    Raises:
        OSError: it could not be written to `folder`; the message says where it is instead.
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
        raise OSError(f"{error}; what was computed now was written to {other}") from error


@contextmanager
def reading(path: Path, mend: str = AGAIN, state: str = "is damaged") -> Iterator[None]:
    """Around all that reads a file which a user may have edited or a disk may have broken.

    Raises:
        ValueError: reading failed; the line names `path`, and `mend` says what to do about it.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        said = f"it has no {said}" if isinstance(error, KeyError) else " ".join(said.split()) or type(error).__name__
        raise ValueError(f"{path} {state} ({said:.300}): {mend}") from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON."""
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path, form: Any = object) -> Any:
    """What a JSON file holds, of the form that `form.check_form` describes.

    Raises:
        ValueError: the file is damaged, or of another form; the message says to delete it.
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
    """The arrays in an .npz file, `names` among them.

    Raises:
        ValueError: the file is damaged, or lacks one of `names`; the message says to delete it.
    """
    with reading(path), np.load(path, allow_pickle=False) as arrays:
        missing = [name for name in names if name not in arrays.files]
        if missing:
            raise ValueError(f"it holds no {missing[0]}")
        return {name: arrays[name] for name in arrays.files}


def csv_bytes(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], heading: bool = True) -> bytes:
    """Rows as CSV. A text that a spreadsheet program would run as a formula gets an apostrophe before it."""
    lines = [_csv_line(columns)] if heading else []
    lines += [_csv_line([_no_formula(row.get(column)) for column in columns]) for row in rows]
    return "".join(lines).encode()


def _csv_line(cells: Sequence[Any]) -> str:
    """One row, ended by a line feed; the writer quotes carriage returns only where they end lines."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerow(cells)
    return buffer.getvalue().removesuffix("\r\n") + "\n"


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def csv_rows(text: str) -> list[dict[str, str]]:
    """The rows of a CSV file's text by its heading; a row that is too short has empty texts.

    Raises:
        ValueError: no CSV, or a row with more cells than the heading.
    """
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), restkey="", restval="", strict=True))
    except csv.Error as error:
        raise ValueError(str(error)) from error
    finally:
        csv.field_size_limit(before)
    for number, row in enumerate(rows, 1):
        if isinstance(row.get(""), list):
            raise ValueError(f"row {number} has more cells than the heading; quote texts that hold commas")
    return rows


def markdown_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """`rows` as a Markdown table. `columns` maps keys to format specifications; None becomes a dash."""
    lines = [list(columns), ["---"] * len(columns)]
    for row in rows:
        lines.append(["–" if row.get(key) is None else format(row[key], form) for key, form in columns.items()])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
