"""The README and the documentation: length, links, code blocks, commands and quoted messages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import diffusers
import pytest
import typer
from small_pipelines import flux

import relcache
from relcache.cli.app import app
from relcache.models import SPECS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
OTHERS = [ROOT / name for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")]
ALL = [*PAGES, *OTHERS, *sorted((ROOT / "integrations").glob("**/README.md")), ROOT / "benchmarks/rivals/README.md"]
FENCE = re.compile(r"(?P<before>(?:<!--.*?-->\n)?)^```(?P<kind>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, *kinds: str) -> Iterator[str]:
    """The code blocks of a page, without those that are marked as not run, with a reason."""
    for match in FENCE.finditer(path.read_text(encoding="utf-8")):
        if match["kind"] in kinds and "not run:" not in match["before"]:
            yield match["code"]


# Length


def test_the_readme_is_short() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 900


def test_the_readme_begins_with_a_claim_a_picture_and_the_set_up() -> None:
    text = README.read_text(encoding="utf-8")
    order = [
        "several times faster", "![", "images/first.png", "| **relcache", "relcache demo", "-m pytest",
        "relcache.enable", "## Which setting", "## Models and hosts", "## What it is not good for", "## Command line",
        "## Cite", "## Licence",
    ]  # fmt: skip
    found = [text.find(part) for part in order]
    assert -1 not in found
    assert found == sorted(found)


# Links


def anchors_of(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if link.startswith(("http", "../../actions/")):  # GitHub's own pages of a workflow
            continue
        address, _, anchor = link.partition("#")
        target = (page.parent / address).resolve() if address else page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    assert broken == []


# Code


@pytest.fixture
def small_flux(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let the hub's FLUX be a small one with random weights, on a CPU, and keep files in a folder of the test."""

    def load(name: str, **options: Any) -> Any:
        assert name == "black-forest-labs/FLUX.1-dev"
        pipe, call = flux()
        pipe.default_sample_size = call["height"] // pipe.vae_scale_factor
        pipe.set_progress_bar_config(disable=True)
        monkeypatch.setattr(pipe, "to", lambda device: pipe, raising=False)
        return pipe

    monkeypatch.setattr(diffusers.FluxPipeline, "from_pretrained", load)
    monkeypatch.chdir(tmp_path)


WITH_CODE = [page for page in PAGES if list(blocks(page, "python"))]


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_python_runs(page: Path, small_flux: None) -> None:
    """All blocks of a page, one after another, as a reader would paste them."""
    names: dict[str, Any] = {}
    for number, code in enumerate(blocks(page, "python"), 1):
        exec(compile(code, f"{name_of(page)}, block {number}", "exec"), names)


def test_blocks_that_are_not_run_say_why() -> None:
    reasons = [
        match["before"]
        for page in PAGES
        for match in FENCE.finditer(page.read_text(encoding="utf-8"))
        if match["kind"] == "python" and "not run" in match["before"]
    ]
    assert all(re.search(r"not run: \w+ \w+ \w+", reason) for reason in reasons)
    assert len(reasons) <= 1


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of each relcache command in a page's blocks and tables."""
    text = page.read_text(encoding="utf-8")
    lines = [line for code in blocks(page, "sh", "bash") for line in code.replace("\\\n", " ").splitlines()]
    if page.name != "troubleshooting.md":  # whose tables have messages
        lines += re.findall(r"^\| `(relcache [^`]*)`", text, re.MULTILINE)
    for line in lines:
        found = re.search(r"(?:^|&& |bin/)relcache ([^&#]*)", line)
        if found and "…" not in found.group(1):
            yield re.findall(r"\"[^\"]*\"|\S+", found.group(1))


def parse(command: Any, arguments: list[str]) -> None:
    """Parse arguments as the command line does, without running anything."""
    context = command.make_context(command.name, list(arguments))
    if hasattr(command, "resolve_command"):
        rest = [*getattr(context, "_protected_args", []), *context.args]
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None, name
        parse(found, rest)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_understood(page: Path) -> None:
    for arguments in commands(page):
        try:
            parse(typer.main.get_command(app), [argument.strip('"') for argument in arguments])
        except click.exceptions.ClickException as error:
            pytest.fail(f"{' '.join(arguments)}: {error.format_message()}")


def test_commands_are_found() -> None:
    assert sum(len(list(commands(page))) for page in PAGES) > 20


# Models and messages


def test_the_table_of_models_has_every_spec() -> None:
    rows = {f"| `{spec.class_name}` | {', '.join(f'`{name}`' for name in spec.pipelines) or '–'} |" for spec in SPECS}
    table = (DOCS / "models.md").read_text(encoding="utf-8").split("## Supported models")[1].split("## Units")[0]
    assert {line for line in table.splitlines() if line.startswith("| `")} == rows


def test_quoted_messages_are_those_of_the_source() -> None:
    """Each message in the first column of troubleshooting's tables stands in the source, apart from its names."""
    paths = Path(relcache.__file__).parent.rglob("*.py")
    joined = " ".join(re.sub(r'"\n\s*f?"', "", path.read_text(encoding="utf-8")) for path in paths)
    source = re.sub(r"\{[^{}]*\}", "…", joined)
    rows = re.findall(r"^\| `([^`]*)`", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    parts = [part.strip() for row in rows for part in re.split(r"…|\d+", row) if part.strip()]
    missing = [part for part in parts if part not in source]
    assert len(rows) > 20
    assert missing == []
