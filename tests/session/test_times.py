"""A report's times, its line and its picture, and warnings that point at the user's line."""

from __future__ import annotations

import time
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import run_loop, tiny_dit, tiny_pipeline

import relcache
from relcache.engine.clock import Clock
from relcache.session.report import Report


def reported(method: Any, steps: int = 12) -> Report:
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    with relcache.enable(pipe, method) as handle:
        pipe([3], num_inference_steps=steps)
        return handle.report()


def test_steps_are_timed_as_they_pass() -> None:
    """A full step that takes 20 ms more is seen in its time, and so is the whole."""
    model = tiny_dit()
    forward = model.transformer_blocks[0].forward

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.02)
        return forward(*args, **kwargs)

    model.transformer_blocks[0].forward = slow
    with relcache.enable(model, relcache.auto(full_steps=4), num_inference_steps=12) as handle:
        began = time.perf_counter()
        run_loop(model, steps=12)
        whole = time.perf_counter() - began
        report = handle.report()
    full = [seconds for step, seconds in enumerate(report.step_seconds) if step in report.full_steps]
    cached = [seconds for step, seconds in enumerate(report.step_seconds) if step not in report.full_steps]
    assert len(report.step_seconds) == 12
    assert min(full) > 0.02 > max(cached)
    assert 0.08 < report.seconds <= whole
    assert 2 < report.speedup < 3.1


def test_the_speed_is_that_of_the_median_steps() -> None:
    """The first step warms up, and one cached step compiled: neither counts by its own time."""
    report = replace(
        reported(relcache.FORA(4), 7), full_steps=[0, 1, 4], step_seconds=[9.0, 2.0, 30.0, 0.5, 2.0, 0.5, 0.5]
    )
    assert report.seconds == 44.5
    assert report.speedup == pytest.approx(7 * 2 / (3 * 2 + 4 * 0.5))
    assert replace(report, finer=2).speedup == report.speedup / 2  # full compute would make half as many steps
    assert replace(report, full_steps=[0]).speedup is None
    assert Report(**report.to_dict()).speedup == report.speedup
    assert "44.5 s, 1.75 times as fast as full compute by its own step times" in report.summary()


def test_an_interrupted_step_has_no_time() -> None:
    """Of a request that ends inside a step the earlier steps are timed, and the picture has all of them."""
    model = tiny_dit()
    handle = relcache.enable(model, relcache.FORA(3), num_inference_steps=12)
    forward, calls = model.proj_out_2.forward, 0

    def stops(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    model.proj_out_2.forward = stops
    with pytest.raises(KeyboardInterrupt):
        run_loop(model, steps=12)
    report = handle.report()
    assert (report.steps, len(report.step_seconds)) == (9, 8)
    assert min(report.step_seconds) > 0
    assert report._repr_html_().count("<rect") == 9
    assert "height='-" not in report._repr_html_()


def test_without_times_nothing_is_said_of_them() -> None:
    report = replace(reported(relcache.FORA(4), 6), step_seconds=[])
    assert report.seconds is report.speedup is None
    assert "times as fast" not in report.summary() + str(report)


def test_a_device_whose_time_the_host_does_not_know() -> None:
    clock = Clock()
    clock.begin_step(torch.device("mps"))
    assert not clock.is_exact
    exact = Clock()
    for _ in range(3):
        exact.begin_step(torch.device("cpu"))
    assert len(exact.seconds()) == 2  # the third has not ended
    exact.end_call(torch.device("cpu"))
    assert len(exact.seconds()) == 3
    assert len(exact.begun()) == 2
    exact.begin_step(torch.device("cpu"))
    assert len(exact.seconds()) == 3  # the fourth has not ended


def test_the_line_of_a_handle() -> None:
    pipe = tiny_pipeline()
    handle = relcache.enable(pipe, full_steps=4)
    assert handle.summary() == "auto:full_steps=4 on DiTTransformer2DModel: no request yet"
    pipe.set_progress_bar_config(disable=True)
    pipe([3], num_inference_steps=12)
    assert "4 of 12 steps full, " in handle.summary()
    assert "3 gaps corrected by " in handle.summary()


@pytest.mark.parametrize("method", [relcache.auto(full_steps=4), relcache.RFC(1, threshold=0.3), relcache.FORA(4)])
def test_the_picture_has_a_bar_for_each_step(method: relcache.Method) -> None:
    report = reported(method)
    html = report._repr_html_()
    picture = ElementTree.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])
    bars = picture.findall("rect")
    assert len(bars) == 12
    assert [step for step, bar in enumerate(bars) if ": full" in bar.find("title").text] == report.full_steps
    assert len(picture.findall("circle")) == len(report.corrections)
    assert len(picture.findall("polyline")) == report.method.startswith("rfc")
    assert html.count("<tr>") == len(report.rows())


def test_before_a_request_and_with_names_that_look_like_html() -> None:
    report = replace(reported(relcache.FORA(4)), notes=["<b>"])
    assert "&lt;b&gt;" in report._repr_html_()
    assert "<b>" not in report._repr_html_()
    assert replace(report, steps=0)._repr_html_().startswith("<p>fora")


def made_with_numbers(pipe: Any, handle: relcache.Handle) -> None:
    pipe([3], num_inference_steps=6)
    handle.report()


def test_warnings_point_at_the_users_line() -> None:
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer.proj_out_2.weight.data.fill_(float("nan"))
    handle = relcache.enable(pipe, relcache.FORA(4))
    with pytest.warns(UserWarning, match="relcache: ") as seen:
        made_with_numbers(pipe, handle)
    ours = [warning for warning in seen if str(warning.message).startswith("relcache: ")]
    assert {warning.filename for warning in ours} == {__file__}
