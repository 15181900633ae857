"""A report as HTML, for notebooks: a figure of full steps, error and corrections, and a table."""

from __future__ import annotations

from html import escape
from math import isfinite
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relcache.session.report import Report

WIDTH, HEIGHT, HEAD, FOOT = 560, 120, 12, 16  # pixels: the figure, the room for marks above bars, and numbers below
FULL, CACHED, ERROR, CORRECTION = "#1b7f79", "#b5d8d3", "#d6604d", "#2166ac"


def as_html(report: Report) -> str:
    """Return the figure and the table of a report."""
    if not report.steps:
        return f"<p>{escape(report.summary())}</p>"
    aligned = "<td style='text-align:left'>"
    rows = "".join(
        f"<tr>{aligned}{escape(name)}</td>{aligned}{escape(value)}</td></tr>" for name, value in report.rows()
    )
    return f"<div>{escape(report.summary())}</div>{_figure(report)}{_legend(report)}<table>{rows}</table>"


def _figure(report: Report) -> str:
    """Return the steps as bars in SVG; heights are seconds, or 1 and 0.1 where these are unknown."""
    width = WIDTH / report.steps
    heights = report.step_seconds or [1.0 if step in report.full_steps else 0.1 for step in range(report.steps)]
    heights = [*heights, *[0.0] * (report.steps - len(heights))]  # a step that was interrupted has no time
    usual = sorted(heights)[max(0, len(heights) - 2)] or 1.0  # the first step may have taken much longer
    parts = [_bar(report, step, seconds / usual, width) for step, seconds in enumerate(heights)]
    parts += [_dot((step + 0.5) * width) for step, _ in report.corrections]
    parts.append(_line(report, width))
    every = max(1, round(report.steps / 10))
    parts += [_number(step, (step + 0.5) * width) for step in range(0, report.steps, every)]
    size = f"width='{WIDTH}' height='{HEIGHT + FOOT}' fill='currentColor'"
    return f"<svg {size} role='img' aria-label='full steps of the request'>{''.join(parts)}</svg>"


def _bar(report: Report, step: int, share: float, width: float) -> str:
    full, sizes = step in report.full_steps, dict(report.corrections)
    title = f"step {step}: {'full' if full else 'forecast'}"
    title += f", {report.step_seconds[step]:.3g} s" if step < len(report.step_seconds) else ""
    title += f", corrected by {sizes[step]:.2%}" if step in sizes else ""
    tall = (HEIGHT - HEAD) * min(1.0, share)
    box = f"x='{step * width:.1f}' y='{HEIGHT - tall:.1f}' width='{max(1.0, width - 1):.1f}' height='{tall:.1f}'"
    return f"<rect {box} fill='{FULL if full else CACHED}'><title>{title}</title></rect>"


def _dot(x: float) -> str:
    return f"<circle cx='{x:.1f}' cy='6' r='3' fill='{CORRECTION}'/>"


def _number(step: int, x: float) -> str:
    return f"<text x='{x:.1f}' y='{HEIGHT + HEAD}' font-size='10' text-anchor='middle'>{step}</text>"


def _line(report: Report, width: float) -> str:
    """Return the error signal as a line, scaled to its greatest value."""
    known = [(step, error) for step, error in enumerate(report.signal) if error is not None and isfinite(error)]
    most = max((error for _, error in known), default=0.0)
    if most <= 0:
        return ""
    heights = [(step, HEIGHT - (HEIGHT - HEAD) * error / most) for step, error in known]
    points = " ".join(f"{(step + 0.5) * width:.1f},{y:.1f}" for step, y in heights)
    return f"<polyline points='{points}' fill='none' stroke='{ERROR}' stroke-width='1.5'/>"


def _legend(report: Report) -> str:
    named = [(FULL, "full step"), (CACHED, "forecast")]
    named += [(CORRECTION, "corrected")] if report.corrections else []
    named += [(ERROR, "error signal")] if any(error is not None for error in report.signal) else []
    marks = " ".join(f"<span style='color:{colour}'>■</span> {name}" for colour, name in named)
    return f"<div>{marks}; heights are {'seconds' if report.step_seconds else 'costs'} of the steps</div>"
