"""Named pairs of the literature, and how a config or a line of text names them."""

from __future__ import annotations

from typing import Any

import pytest

from relcache import (
    FORA,
    RCS,
    RFC,
    RFE,
    Always,
    ErrorBudget,
    Interval,
    Linear,
    Method,
    Newton,
    Plan,
    Relational,
    Reuse,
    Taylor,
    TaylorSeer,
    method_from_config,
    method_from_text,
)


def test_pairs_of_the_literature() -> None:
    assert FORA(4) == Method(Reuse(), Interval(4, warmup=2), "FORA")
    assert TaylorSeer(2, 4) == Method(Taylor(2), Interval(4, warmup=2), "TaylorSeer")
    assert RFC(2, 0.12) == Method(Relational(2, "taylor", "sample"), ErrorBudget(0.12, 2, "sample"), "RFC")
    assert RFC(1, 0.2, 3, "newton", "tensor") == Method(
        Relational(1, "newton", "tensor"), ErrorBudget(0.2, 3, "tensor"), "RFC"
    )
    assert RFE(2, 4) == Method(Relational(2), Interval(4), "RFE")
    assert RCS(2, 0.1) == Method(Taylor(2), ErrorBudget(0.1), "RCS")


def test_order_of_a_method() -> None:
    assert [method.order for method in (FORA(4), TaylorSeer(2, 4), RFC(1), Method(Linear(), Always()))] == [0, 2, 1, 1]


def test_other_threshold() -> None:
    method = RFC(2, 0.12, norm="tensor", full_last=3)
    assert method.with_threshold(0.5) == RFC(2, 0.5, norm="tensor", full_last=3)
    assert method == RFC(2, 0.12, norm="tensor", full_last=3)


def test_a_pair_of_ones_own_has_a_name() -> None:
    name = Method(Newton(2), Plan([0, 3])).name
    assert "Newton(order=2)" in name
    assert "Plan(full_steps=(0, 3))" in name


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"method": "rfc", "order": 2, "threshold": 0.1}, RFC(2, 0.1)),
        ({"method": "RFC"}, RFC()),
        ({"method": "fora", "interval": 5, "warmup": 1}, FORA(5, 1)),
        ({"method": "taylorseer", "order": 1, "interval": 4, "phase": 3}, TaylorSeer(1, 4, phase=3)),
        ({"method": "plan", "full_steps": [0, 1, 5]}, Method(Relational(2), Plan([0, 1, 5]), "RFE on a plan")),
        ({"method": "full"}, Method(Reuse(), Always(), "full")),
    ],
)
def test_from_config(config: dict[str, Any], expected: Method) -> None:
    given = dict(config)
    assert method_from_config(given) == expected
    assert given == config, "the config is left as it was"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("full", Method(Reuse(), Always(), "full")),
        ("fora:interval=4", FORA(4)),
        ("rfc:order=2,threshold=0.12,direction=newton", RFC(2, 0.12, direction="newton")),
        (" rfe : order = 1 , interval = 6 ", RFE(1, 6)),
        ("plan:full_steps=[0, 1, 5],order=1", Method(Relational(1), Plan([0, 1, 5]), "RFE on a plan")),
        ("linear:interval=4,weight=0.8", Method(Linear(0.8), Interval(4), "Linear")),
        ("newton:order=2,interval=4,phase=3", Method(Newton(2), Interval(4, phase=3), "Newton")),
        ("rcs:order=1,threshold=0.3,longest_gap=null", RCS(1, 0.3)),
    ],
)
def test_from_text(text: str, expected: Method) -> None:
    assert method_from_text(text) == expected
