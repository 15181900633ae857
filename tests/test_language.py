"""Plain English: sentences of docstrings, comments and messages are short and begin with their subject."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import relcache

PACKAGE = Path(relcache.__file__).parent
ROOT = Path(__file__).parent.parent
MOST_WORDS = 25
MOST_PARENTHESES = 1
REFUSED = re.compile(r"\b[Oo]f which\b|\b[Ww]hatever\b|\b[Ww]hichever\b|so manieth|(?:^|, |\band )[Ww]hat (?!if\b)")
PARENTHESIS = re.compile(r"(?<=\s)\([^()]*[a-z] [^()]*\)")  # of prose: no call, no shape
ENTRY = re.compile(r"^\s*(?:[\w*, ]+|`[^`]+`)(?: \([^)]*\))?: ")  # of "Args:", "Attributes:" and "Raises:"


def texts_of(source: str) -> Iterator[tuple[int, str]]:
    """Each docstring, message and comment of a file, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        elif isinstance(node, ast.JoinedStr):
            pieces = [piece.value if isinstance(piece, ast.Constant) else "X" for piece in node.values]
            yield node.lineno, "".join(map(str, pieces))
    comment, first = "", 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            first = first if comment else token.start[0]
            comment += " " + token.string.lstrip("#: ")
        elif token.type not in (tokenize.NL, tokenize.NEWLINE) and comment:
            yield first, comment
            comment = ""


def sentences_of(text: str) -> Iterator[str]:
    """The sentences of a text of several words; tables, code and literals are left out."""
    text = re.sub(r"```.*?```|^\|.*$|^ {4,}\S.*\n(?=\n)|::\n(?:\n| +.*)+", "", text, flags=re.S | re.M)
    blocks = re.split(r"\n\s*\n", text)
    for block in blocks:
        for entry in re.split(r"\n(?=\s*(?:[-*] |[\w*, `]+: ))", block):
            flat = re.sub(r"`[^`]*`|\"[^\"]*\"", "X", " ".join(ENTRY.sub("", entry).split()))
            yield from re.split(r"(?<=[.!?;:])\s+(?=[A-Z`\"'(\d]|[a-z])", flat)


def faults_of(sentence: str) -> list[str]:
    """What is wrong with one sentence."""
    words = [word for word in sentence.split() if re.search(r"[A-Za-z]", word)]
    if len(words) < 4:
        return []
    faults = []
    if len(words) > MOST_WORDS:
        faults.append(f"{len(words)} words")
    if len(found := PARENTHESIS.findall(sentence)) > MOST_PARENTHESES:
        faults.append(f"{len(found)} parentheses")
    if refused := REFUSED.search(sentence):
        faults.append(f"{refused.group().strip(' ,;')!r}")
    return faults


def faults_in(path: Path) -> list[str]:
    """The faults of a file, a line each."""
    return [
        f"{path.name}:{line}: {', '.join(faults)}: {sentence}"
        for line, text in texts_of(path.read_text(encoding="utf-8"))
        for sentence in sentences_of(text)
        if (faults := faults_of(sentence))
    ]


@pytest.mark.parametrize("folder", sorted({path.parent for path in PACKAGE.rglob("*.py")}), ids=lambda p: p.name)
def test_sentences_are_plain(folder: Path) -> None:
    assert [fault for path in sorted(folder.glob("*.py")) for fault in faults_in(path)] == []


def test_a_bad_sentence_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(
        '"""Of which tokens the error is computed."""\n# ' + "word " * 30 + "\nx = 'One (a b) and two (c d) here.'\n"
    )
    assert len(faults_in(path)) == 3


PAGES = [
    *sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "integrations").glob("**/README.md")),
    ROOT / "benchmarks/rivals/README.md",
]  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pages_are_plain(page: Path) -> None:
    text = re.sub(r"\[([^\]]*)\]\([^)\s]*\)|^#.*$", r"\1", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert [(fault, sentence) for sentence in sentences_of(text) for fault in faults_of(sentence)] == []
