"""Named pairs of the literature, and how a config or a line of text names them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_dit

import relcache
from relcache import (
    FORA,
    RCS,
    RFC,
    RFE,
    Always,
    ErrorBudget,
    Growing,
    Interval,
    Linear,
    Method,
    Newton,
    Plan,
    Relational,
    Reuse,
    Schedule,
    Taylor,
    TaylorSeer,
    auto,
    method_from_config,
    method_from_text,
    method_to_text,
)
from relcache.methods import value_from_text


def test_pairs_of_the_literature() -> None:
    assert FORA(4) == Method(Reuse(), Interval(4, warmup=2), name="FORA")
    assert TaylorSeer(2, interval=4) == Method(Taylor(2), Interval(4, warmup=2), name="TaylorSeer")
    assert RFC(2, threshold=0.12) == Method(
        Relational(2, "taylor", "sample"), ErrorBudget(0.12, 2, "sample"), name="RFC"
    )
    assert RFC(1, threshold=0.2, warmup=3, direction="newton", norm="tensor") == Method(
        Relational(1, "newton", "tensor"), ErrorBudget(0.2, 3, "tensor"), name="RFC"
    )
    assert RFE(2, interval=4) == Method(Relational(2), Interval(4), name="RFE")
    assert RCS(2, threshold=0.1) == Method(Taylor(2), ErrorBudget(0.1), name="RCS")


def test_order_of_a_method() -> None:
    assert [method.order for method in (FORA(4), TaylorSeer(2, interval=4), RFC(1), Method(Linear(), Always()))] == [
        0,
        2,
        1,
        1,
    ]


def test_other_threshold() -> None:
    method = RFC(2, threshold=0.12, norm="tensor", full_last=3)
    assert method.with_threshold(0.5) == RFC(2, threshold=0.5, norm="tensor", full_last=3)
    assert method == RFC(2, threshold=0.12, norm="tensor", full_last=3)


def test_a_pair_of_ones_own_has_a_name() -> None:
    name = Method(Newton(2), Plan([0, 3])).name
    assert "Newton(order=2)" in name
    assert "Plan(full_steps=(0, 3), total_steps=None)" in name


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"method": "rfc", "order": 2, "threshold": 0.1}, RFC(2, threshold=0.1)),
        ({"method": "RFC"}, RFC()),
        ({"method": "fora", "interval": 5, "warmup": 1}, FORA(5, warmup=1)),
        ({"method": "taylorseer", "order": 1, "interval": 4, "phase": 3}, TaylorSeer(1, interval=4, phase=3)),
        ({"method": "plan", "full_steps": [0, 1, 5]}, Method(Relational(2), Plan([0, 1, 5]), name="RFE on a plan")),
        ({"method": "full"}, Method(Reuse(), Always(), name="full")),
    ],
)
def test_from_config(config: dict[str, Any], expected: Method) -> None:
    given = dict(config)
    assert method_from_config(given) == expected
    assert given == config, "the config is left as it was"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("full", Method(Reuse(), Always(), name="full")),
        ("fora:interval=4", FORA(4)),
        ("rfc:order=2,threshold=0.12,direction=newton", RFC(2, threshold=0.12, direction="newton")),
        (" rfe : order = 1 , interval = 6 ", RFE(1, interval=6)),
        ("plan:full_steps=[0, 1, 5],order=1", Method(Relational(1), Plan([0, 1, 5]), name="RFE on a plan")),
        ("linear:interval=4,weight=0.8", Method(Linear(0.8), Interval(4), name="Linear")),
        ("newton:order=2,interval=4,phase=3", Method(Newton(2), Interval(4, phase=3), name="Newton")),
        ("rcs:order=1,threshold=0.3,longest_gap=null", RCS(1, threshold=0.3)),
    ],
)
def test_from_text(text: str, expected: Method) -> None:
    assert method_from_text(text) == expected


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e-2", 0.01), ("1E5", 1e5), (".5", 0.5), ("5.", 5.0), ("+0.1", 0.1), ("1", 1), ("007", 7), (" 2 ", 2)],
)
def test_numbers_as_people_write_them(text: str, number: float) -> None:
    assert method_from_text(f"rfc:threshold={text}") == RFC(threshold=number)
    assert method_from_text(f"rcs:order=1,threshold={text}") == RCS(1, threshold=number)
    assert method_from_text(f"linear:interval=2,weight={text}").forecaster == Linear(number)


@pytest.mark.parametrize("name", ["fora", "linear", "taylorseer:order=1", "newton:order=1", "rfe:order=1"])
def test_methods_with_an_interval_say_why_they_refuse_a_number(name: str) -> None:
    join = "," if ":" in name else ":"
    assert method_from_text(f"{name}{join}interval=+4").schedule == Interval(4)
    for text, said in (("-1", "-1"), ("1e1", "10.0"), (".5", "0.5"), ("4.0", "4.0"), ("x", "'x'"), ("", "''")):
        with pytest.raises(ValueError, match=f"interval of Interval is a whole number of at least 1, got {said}"):
            method_from_text(f"{name}{join}interval={text}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rfc:threshold=-1", "the threshold of ErrorBudget is a finite number of at least 0, got -1"),
        ("rfc:threshold=1e400", "got inf"),
        ("rfc:threshold=nan", "got 'nan'"),
        ("rfc:threshold=NaN", "got nan"),
        ("rfc:threshold=1_0", "got '1_0'"),
        ("rfc:threshold=²", "got '²'"),
        ("rfc:order=" + "[" * 100_000, "bracket"),
        ("rfc:order=1,order=2", "gives order twice"),
        ("rfc:=1", "is not of the form option=value"),
        ("plan:full_steps=[0,1", "a bracket that is not closed"),
        ("rfc:Threshold=1", "did you mean 'threshold'?"),
        ("RCF", "did you mean 'r"),
    ],
)
def test_texts_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method_from_text(text)


def test_numbers_longer_than_python_reads() -> None:
    assert value_from_text("9" * 5000) == float("inf")
    assert value_from_text("[" * 100_000) == "[" * 100_000


@pytest.mark.parametrize("build", [RFC, RFE, RCS, FORA, TaylorSeer, auto])
def test_options_are_named(build: Callable[..., Method]) -> None:
    with pytest.raises(TypeError, match="positional argument"):
        build(2, 4)
    with pytest.raises(TypeError, match="positional argument"):
        Method(Taylor(1), Interval(4), "mine")


NEW_FILES = {
    "forecasters/half.py": """
from dataclasses import dataclass
from relcache.forecasters.taylor import Taylor

@dataclass(frozen=True)
class Half(Taylor):
    share: float = 0.5
""",
    "schedules/odd.py": """
from dataclasses import dataclass
from relcache.schedules.base import Schedule

@dataclass(frozen=True)
class Odd(Schedule):
    def wants_full(self, state, step, error):
        return step % 2 == 1
""",
    "correctors/other.py": """
from dataclasses import dataclass
from relcache.correctors.replay import Replay

@dataclass(frozen=True)
class Other(Replay):
    strength: int = 1
""",
}
USE = """
import relcache
method = relcache.method_from_text('half:order=2,share=0.25,interval=4,corrector={"name":"other","strength":3}')
assert method == relcache.Method(
    relcache.Half(2, share=0.25), relcache.Interval(4), name="Half", corrector=relcache.Other(strength=3)
), method
assert relcache.method_from_text("fora:interval=2,corrector=other").corrector == relcache.Other()
odd = relcache.method_from_text("half:order=1,schedule=odd")
assert odd.schedule == relcache.Odd()
assert relcache.method_to_text(odd) == "half:schedule=odd", relcache.method_to_text(odd)
assert {"Half", "Odd", "Other"} <= set(dir(relcache))
"""


def test_a_part_is_added_by_its_file_alone(tmp_path: Path) -> None:
    package = Path(relcache.__file__).parent
    shutil.copytree(package, tmp_path / "relcache", ignore=shutil.ignore_patterns("__pycache__"))
    for name, content in NEW_FILES.items():
        (tmp_path / "relcache" / name).write_text(content, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", USE], check=True, env=environment)


TEXTS = [
    "full", "fora:interval=3", "taylorseer:order=1,interval=4,warmup=3,phase=5", "newton:order=2,interval=3",
    "linear:weight=0.5,interval=3", "rfe:order=1,interval=3", "rfc", "rfc:threshold=0.2,direction=newton,norm=tensor",
    "rcs:order=2,threshold=0.2,full_last=2,direction=newton", "rfc:full_steps=8,cache_dtype=int8",
    "plan:full_steps=[0,1,2,5,9,14,19]", "auto", "auto:full_steps=7,corrector=none", "auto:speedup=3,granularity=block",
    "taylorseer:order=2,interval=4,memory_limit=6GB,corrector=replay,finer=2",
    'auto:corrector={"name":"replay","theta":0.5}', 'taylor:order=2,schedule={"name":"growing","full_steps":7}',
    "newton:schedule=always",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_a_method_prints_the_text_that_names_it(text: str) -> None:
    method = method_from_text(text)
    assert method_to_text(method) == text
    model = tiny_dit()
    if "finer" not in text:
        assert relcache.enable(model, method).method == text


@pytest.mark.parametrize(
    "pair",
    [
        Method(Newton(2), Interval(3)),
        Method(Taylor(1), Growing(7)),
        Method(Taylor(2, reuse_first=True), ErrorBudget(0.2, warmup=3)),
        Method(Relational(2), Growing(8), corrector=relcache.Replay()),
        Method(Linear(0.5), Always()),
    ],
    ids=str,
)
def test_any_pair_prints_a_text_that_names_it(pair: Method) -> None:
    again = method_from_text(method_to_text(pair))
    assert (again.forecaster, again.schedule, again.corrector) == (pair.forecaster, pair.schedule, pair.corrector)


def test_a_schedule_and_an_interval_are_refused() -> None:
    with pytest.raises(ValueError, match="newton takes either a schedule or interval"):
        method_from_text("newton:interval=4,schedule=always")


@dataclass(frozen=True)
class OneInThree(Schedule):
    def wants_full(self, state: None, step: int, error: float | None) -> bool:
        return step % 3 == 0


def test_a_part_from_elsewhere_has_no_text() -> None:
    method = Method(Taylor(1), OneInThree())
    assert method_to_text(method) == method.name == f"{Taylor(1)} with {OneInThree()}"
