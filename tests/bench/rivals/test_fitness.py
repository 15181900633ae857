"""Every rival says whether it can run on a pipeline, also on one that it cannot."""

from __future__ import annotations

import pytest
from small_pipelines import wan

from relcache.bench.comparison.contestants import unfit
from relcache.bench.comparison.entries import choose
from relcache.bench.rivals.registry import all_rivals


def test_a_pipeline_with_two_transformers() -> None:
    pipeline = wan(2)[0]
    for name in all_rivals():
        assert "only a pipeline with one transformer" in unfit({"method": name}, pipeline)
    assert unfit({"method": "auto"}, pipeline) == ""


def test_the_race_has_every_rival_once() -> None:
    """Those with values of their own have an entry for each value; the titles tell all contestants apart."""
    entries = choose("race")
    assert len({entry.name for entry in entries}) == len(entries)
    for rival in all_rivals().values():
        own = [entry for entry in entries if entry.rival is rival]
        assert len(own) == max(1, len(rival.values))
        assert [entry.fixed for entry in own] == [bool(rival.values)] * len(own)
        assert all(entry.title == rival.title for entry in own)
    assert len({rival.title for rival in all_rivals().values()}) == len(all_rivals())
    assert {rival.group for rival in all_rivals().values()} == {"solver", "diffusers", "cache-dit", "equations"}
    assert all(rival.source for rival in all_rivals().values())


@pytest.mark.parametrize("group", ["solver", "diffusers", "cache-dit", "equations"])
def test_a_group_is_named_by_its_library(group: str) -> None:
    assert {entry.rival.group for entry in choose(group) if entry.rival} == {group}
