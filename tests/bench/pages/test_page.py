"""The report page: whole in one file, and alive in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from relcache.bench.comparison.benchmarks import PAPER, SMALL
from relcache.bench.pages.page import EXPLAINED, write_page
from relcache.cli.app import app

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench")
    result = CliRunner().invoke(
        app,
        ["bench", "class-conditional", "--preset", "small", "--samples", "3", "--steps", "10", "--nfc", "5,4",
         "--methods", "fora,taylorseer-1,rcs-1", "--calibration-samples", "1", "--out", str(out), "--html"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "report.html" in result.output
    return out / "class-conditional"


def test_page_needs_nothing_else(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    gallery = json.loads(re.search(r'id="gallery">(.*?)</script>', page, re.S)[1])
    assert [(cell["method"], cell["nfc"]) for cell in gallery["cells"]] == [
        ("full", None), ("fora", 5), ("taylorseer-1", 5), ("rcs-1", 5), ("fora", 4), ("taylorseer-1", 4), ("rcs-1", 4),
    ]  # fmt: skip
    assert all(len(cell["pictures"]) == len(cell["notes"]) == 3 for cell in gallery["cells"])
    assert "PSNR" in gallery["cells"][1]["notes"][0]


def test_every_column_is_explained(folder: Path) -> None:
    for benchmark in (*PAPER.values(), *SMALL.values()):
        assert {name for name, column in benchmark.columns.items() if not column.detail} <= set(EXPLAINED)
    page = (folder / "report.html").read_text()
    headings = re.findall(r'<th tabindex="0">([^<]*)</th>', page)
    assert "GFLOPs" in headings  # as in the terminal, not 0.007 TFLOPs
    assert set(re.findall(r"<dt>([^<]*)</dt>", page)) == {*headings} - {"method"}


def test_classes_have_names_and_the_title_says_what_it_is(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert json.loads(re.search(r'id="gallery">(.*?)</script>', page, re.S)[1])["conditions"][0] == "T-shirt"
    assert re.search(r"<h1>dit-fashion-mnist, 3 samples, 10 steps, \d{4}-\d\d-\d\d</h1>", page)


def test_no_results_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no results of a benchmark"):
        write_page(tmp_path)


@pytest.fixture(scope="module")
def page(folder: Path) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, from the extra test")
    if BROWSER is None:
        pytest.skip("needs a browser: chromium or google-chrome on the PATH (on Debian, apt install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        opened = browser.new_page()
        mistakes: list[str] = []
        opened.on("pageerror", lambda error: mistakes.append(str(error)))
        opened.on("request", lambda request: mistakes.append(request.url) if request.url.startswith("http") else None)
        opened.goto((folder / "report.html").as_uri())
        yield opened
        browser.close()
        assert not mistakes


def test_tables_sort(page: Any) -> None:
    def column(place: int) -> list[str]:
        return page.locator(f"#results tbody tr td:nth-child({place})").all_inner_texts()

    headings = page.locator("#results th").all_inner_texts()
    place = headings.index("PSNR") + 1
    page.locator("#results th").nth(place - 1).click()
    *known, last = column(place)
    assert last == "–"  # full compute has none, and stays below
    values = [float(value) for value in known]
    assert values == sorted(values, reverse=True)
    page.locator("#results th").nth(place - 1).press("Enter")
    assert [float(value) for value in column(place)[:-1]] == sorted(values)


def test_slider_and_numbers(page: Any) -> None:
    assert page.locator("#pictures img").count() == 6
    assert page.locator("#pictures img").evaluate_all("images => images.every(image => image.naturalWidth == 28)")
    first = page.locator("#pictures img").nth(1).get_attribute("src")
    assert page.locator("#name").inner_text() == "fora"
    page.locator("#method").fill("1")
    assert page.locator("#name").inner_text() == "taylorseer-1"
    assert page.locator("#pictures img").nth(1).get_attribute("src") != first
    page.locator("#pictures img").nth(1).hover()
    assert re.search(r"taylorseer-1, seed 0: PSNR [\d.]+", page.locator("#note").inner_text())
    page.locator("#nfc").select_option("4")
    assert page.locator("#pictures img").nth(1).get_attribute("src") != first


def test_figures_are_seen(page: Any) -> None:
    drawn = page.locator("figure img")
    assert drawn.count() == 7  # four columns, the traces, two sheets
    assert drawn.evaluate_all("images => images.every(image => image.complete && image.naturalWidth > 200)")


def test_on_a_phone(page: Any) -> None:
    """Nothing is wider than the screen but tables, which scroll below their first column; touching shows numbers."""
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    table = page.locator(".wide").first
    table.evaluate("element => { element.scrollLeft = element.scrollWidth }")
    assert table.evaluate("element => element.scrollLeft") > 0
    assert table.locator("td").first.bounding_box()["x"] >= 0
    page.locator(".pictures img").nth(1).click()
    assert "PSNR" in page.locator("#note").text_content()
