"""What users write, as file names, on pictures, in spreadsheets and on pages: every script, and every trick."""

from __future__ import annotations

import csv
import io
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from relcache.bench.comparison.prepare import read_prompts
from relcache.bench.figures.sheet import SheetRow, draw_sheet
from relcache.bench.figures.text import drawable, families, labels
from relcache.bench.files import slug
from relcache.bench.tables import csv_bytes
from relcache.checks import nearest, unknown
from relcache.cli.app import app

PROMPTS = [
    "<!--<script>",
    "</script><script>document.title='taken'</script>",
    '=cmd|"/c calc"!A1',
    "红色的圆",
    "蓝色的圆",
    "دائرة حمراء",
    "🙂",
    "🙃",
    "-1",
    "@x",
    "costs $5 and $6_",
    "ein großer Kreis",
]


def test_file_names_are_apart() -> None:
    texts = [*PROMPTS, "红", "圆", "a" * 100, "a" * 101, "ein groser Kreis", "!", "?", "ein gro er Kreis"]
    names = [slug(text) for text in texts]
    assert len(set(names)) == len(texts)
    assert all(re.fullmatch("[a-z0-9-]{1,60}", name) for name in names)
    assert slug("An owl on a wire!") == "an-owl-on-a-wire"
    assert slug("rfc:order=2,threshold=0.12") == "rfc-order-2-threshold-0-12"
    assert slug("../../etc/passwd") == "etc-passwd"
    assert slug(" ") == slug("") == "empty"


def test_texts_that_cannot_be_drawn_get_a_plain_label() -> None:
    """Where a font has every sign, the text itself; where letters must join or run to the left, never."""
    shown = labels(PROMPTS, "prompt")
    assert shown[0] == "<!--<script>"
    assert shown[10:] == ["costs $5 and $6_", "ein großer Kreis"]
    assert shown[5] == "prompt 6"  # whatever fonts there are: matplotlib does not join Arabic letters
    for number, text in enumerate(PROMPTS, 1):
        assert shown[number - 1] == (text if families(text) else f"prompt {number}")
    assert drawable("a\nb\tc", "x") == "a b c"
    assert drawable("a\x00b", "x") == drawable("เก้า", "x") == "x" or "เก้า".isprintable()
    assert "last resort" not in " ".join(families("a red circle")).lower()


def test_sheets_have_no_boxes(tmp_path: Path) -> None:
    """matplotlib warns of a sign that its fonts lack, and reads dollars as mathematics unless told otherwise."""
    images = np.random.default_rng(0).random((len(PROMPTS), 3, 8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sheet = draw_sheet([SheetRow("full compute", images), SheetRow("mine", images)], "模型 $x$, 50 steps", PROMPTS)
        draw_sheet([SheetRow("full compute", images[:1])], "$", ["word " * 5000])
    with Image.open(io.BytesIO(sheet)) as picture:
        assert picture.width > picture.height
    with Image.open(io.BytesIO(draw_sheet([SheetRow("a", images[:1])], "b", ["x" * 100_000]))) as picture:
        assert picture.height < 1000


def test_cells_that_would_be_formulas_are_quoted() -> None:
    texts = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "a=1", "", "'=1"]
    numbers = (-1, 2, -0.5, 0, 1, 1, 1, 1, 1)
    rows = [{"text": text, "number": number} for text, number in zip(texts, numbers, strict=True)]
    written = csv_bytes(rows, ["text", "number"]).decode()
    read = list(csv.DictReader(io.StringIO(written, newline="")))
    assert [row["text"] for row in read] == [
        "'=1+1", "'+1", "'-1", "'@SUM(A1)", "'\t=1", "'\r=1", "a=1", "", "'=1"
    ]  # fmt: skip
    assert [row["number"] for row in read][:3] == ["-1", "2", "-0.5"]  # numbers stay numbers


def test_a_benchmark_of_any_prompts(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    asked = ["bench", "text-to-image", "--preset", "small", "--steps", "6", "--nfc", "3", "--calibration-samples", "1",
             "--methods", "fora", "--prompts", str(prompts), "--html", "--out", str(tmp_path)]  # fmt: skip
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    out = tmp_path / "text-to-image"
    with (out / "samples.csv").open(encoding="utf-8", newline="") as file:
        conditions = [row["condition"] for row in csv.DictReader(file)][: len(PROMPTS)]
    assert [text.removeprefix("'") for text in conditions] == PROMPTS
    assert [text for text in conditions if text.startswith("'")] == ['\'=cmd|"/c calc"!A1', "'-1", "'@x"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<script") == page.count("</script>") == 2
    assert "<!--" not in page
    gallery = re.search(r'id="gallery">(.*?)</script>', page, re.S)
    assert gallery is not None
    assert json.loads(gallery[1])["conditions"] == PROMPTS[:8]


def test_pictures_of_prompts_in_any_script(tmp_path: Path) -> None:
    asked = [part for text in PROMPTS[3:8] for part in ("--prompt", text)]
    method = ["--method", "fora:interval=2", "--steps", "4", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, ["sample", *asked, *method])
    assert result.exit_code == 0, result.output
    names = [re.sub(r"^\d+-|-seed\d+", "", path.stem) for path in tmp_path.glob("0*.png")]
    assert len(set(names)) == 5


def test_prompts_in_csv_files(tmp_path: Path) -> None:
    """Cells with line breaks, with separators that only Python takes for ends of lines, and very long ones."""
    path = tmp_path / "prompts.csv"
    path.write_text('x, Prompts \n1,"a\nb"\n2,c\u2028d\n3,"e, f"\n4,' + "g" * 200_000 + "\n", encoding="utf-8")
    assert read_prompts(path) == ["a\nb", "c\u2028d", "e, f", "g" * 200_000]
    for content, message in (
        ("Prompts\na,b\n", "row 1 has more cells than the heading"),
        ('Prompts\n"a\n', "unexpected end of data"),
        ("Text\na\n", "has no column 'Prompts'; it has Text"),
        ("", "it has no rows"),
        ("Prompts,x\n,1\n", "row 1 of .* is empty"),
    ):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_prompts(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_prompts(tmp_path)


def test_nearest_names() -> None:
    assert nearest("Sneker", ["bag", "sneaker"]) == ["sneaker"]
    assert nearest("xyz", ["bag"]) == []
    assert unknown("class", "T-Shirt ", ["T-shirt", "bag"]) == (
        "unknown class 'T-Shirt ': did you mean 'T-shirt'? there are T-shirt, bag"
    )
