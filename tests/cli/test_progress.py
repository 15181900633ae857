"""Progress in a log: lines, as a bar cannot move there."""

from __future__ import annotations

import io

from rich.console import Console
from rich.progress import Progress

from relcache.cli import terminal


def test_a_log_gets_a_line_at_once_and_then_few() -> None:
    stream = io.StringIO()
    with terminal.ProgressLines(console=Console(file=stream)) as bar:
        task = bar.add_task("loading", total=None)
        bar.update(task, description="fora at 14", total=400)
        for _ in range(300):
            bar.advance(task)
        first = stream.getvalue()
        bar.every = 0.0
        bar.advance(task, 10)
    assert first == "0 of 400 after 0 s: fora at 14\n"
    assert stream.getvalue().startswith(first + "310 of 400 after 0 s: fora at 14\n")


def test_a_terminal_gets_a_bar(monkeypatch) -> None:
    monkeypatch.setattr(terminal, "errors", Console(file=io.StringIO(), force_terminal=True))
    assert type(terminal.progress_bar()) is Progress
    monkeypatch.setattr(terminal, "errors", Console(file=io.StringIO()))
    assert isinstance(terminal.progress_bar(), terminal.ProgressLines)
