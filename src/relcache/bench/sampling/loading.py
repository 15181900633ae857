"""Finds missing weights in the logs of diffusers and transformers, which replace them by random ones."""

from __future__ import annotations

import logging as standard
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from diffusers.utils import logging
from transformers.utils import logging as transformers_logging

MOST_NAMES = 3  # of weights in a message
OF_TRANSFORMERS = re.compile(r"LOAD REPORT\S* from: (?P<folder>.+)")
ROW = re.compile(r"^\s*(?P<name>\S+)\s*\|\s*(?P<state>MISSING|MISMATCH)", re.MULTILINE)
OF_DIFFUSERS = re.compile(
    r"not initialized from the model checkpoint at (?P<folder>.+?) and are newly .*?:\s*\[(?P<names>.*?)\]"
)


class _Collector(standard.Handler):
    def __init__(self) -> None:
        super().__init__(standard.WARNING)
        self.said: list[str] = []

    def emit(self, record: standard.LogRecord) -> None:
        self.said.append(record.getMessage())


@contextmanager
def quiet_loading() -> Iterator[list[str]]:
    """Suppress the bars and lines of both libraries, and yield the list that collects their warnings."""
    collector = _Collector()
    with ExitStack() as stack:
        for library in (logging, transformers_logging):
            stack.callback(library.set_verbosity, library.get_verbosity())
            library.set_verbosity_warning()
            library.disable_default_handler()
            stack.callback(library.enable_default_handler)
            library.add_handler(collector)
            stack.callback(library.remove_handler, collector)
            if library.is_progress_bar_enabled():
                stack.callback(library.enable_progress_bar)
            library.disable_progress_bar()
        yield collector.said


def missing_weights(said: list[str]) -> str:
    """Return words for a message about weights that are missing or of another shape; empty without any."""
    found = []
    for text in said:
        report, line = OF_TRANSFORMERS.search(text), OF_DIFFUSERS.search(text)
        names = [row["name"] for row in ROW.finditer(text)] if report else []
        if line:
            names = re.findall(r"'([^']+)'", line["names"])
        if names:
            more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
            folder = (report or line)["folder"].strip()  # type: ignore[index]
            found.append(
                f"the weights in {folder} lack {', '.join(names[:MOST_NAMES])}{more}, or have them in another shape"
            )
    return "; ".join(found)
