"""Intervals by bootstrap, and contestants at the time of another."""

from __future__ import annotations

import numpy as np
import pytest

from relcache.bench.race.equal_time import Interval, Point, at_time, duel, interval


def test_an_interval_holds_its_mean_and_is_the_same_each_time() -> None:
    values = np.random.default_rng(0).normal(30, 4, 64)
    found = interval(values)
    assert found == interval(list(values))
    assert found.mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / 8  # the normal approximation
    assert (found.least, found.most) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.25)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = [found.least <= 0 <= found.most for found in (interval(rng.normal(0, 1, 64)) for _ in range(200))]
    assert 0.88 <= np.mean(hits) <= 0.99


def test_missing_values_are_left_out() -> None:
    assert interval([1.0, np.nan, 1.0]) == Interval(1.0, 1.0, 1.0)
    assert np.isnan(interval([]).mean)


def point(share: float, *values: float) -> Point:
    return Point([share], np.array(values))


CURVE = [point(0.4, 40, 44), point(0.2, 30, 30), point(0.3, 32, 36)]


@pytest.mark.parametrize(
    ("share", "values"),
    [
        (0.19, None),
        (0.2, (30, 30)),
        (0.25, (31, 33)),
        (0.3, (32, 36)),
        (0.375, (38, 42)),
        (0.4, (40, 44)),
        (0.41, None),
    ],
)
def test_each_sample_along_a_curve(share: float, values: tuple[float, ...] | None) -> None:
    found = at_time(share, CURVE)
    assert (None if found is None else tuple(found.round(9))) == values


def test_a_curve_of_one_point_and_of_none() -> None:
    assert at_time(0.5, [point(0.5, 30)]) == pytest.approx([30])
    assert at_time(0.5, []) is None
    assert at_time(0.6, [point(0.5, 30)]) is None


def test_a_faster_run_counts_where_it_is_better() -> None:
    """A curve may fall: nobody would take the slower run."""
    falling = [point(0.2, 40, 40), point(0.3, 30, 30), point(0.4, 50, 50)]
    found = [at_time(share, falling) for share in (0.25, 0.3, 0.35, 0.39)]
    assert [tuple(values.round(6)) for values in found if values is not None] == [
        (40, 40),
        (40, 40),
        (40, 40),
        (48, 48),
    ]


@pytest.mark.parametrize(
    ("curve", "lead", "parted"),
    [
        ([(0.2, 20), (0.3, 22)], 19, True),
        ([(0.2, 39), (0.3, 39)], 1, True),
        ([(0.2, 40), (0.3, 40)], 0, False),
        ([(0.25, 50)], -10, True),
        ([(0.3, 60)], None, None),
    ],
)
def test_a_duel(curve: list[tuple[float, float]], lead: float | None, parted: bool | None) -> None:
    """A lead is of the same samples: their spread does not count. A curve that does not reach the time has none."""
    spread = np.arange(64) / 8
    found = duel(Point([0.25], 40 + spread), [Point([share], base + spread) for share, base in curve])
    if lead is None:
        assert found is None
        return
    assert found is not None
    assert tuple(round(value, 6) for value in found.lead) == (lead,) * 3
    assert found.parted is parted


def test_the_spread_of_samples_widens_a_lead() -> None:
    noise = np.random.default_rng(0).normal(0, 4, 64)
    found = duel(Point([0.25], np.full(64, 40.0)), [Point([0.25], 39 + noise)])
    assert found is not None
    half = 1.96 * noise.std() / 8
    assert (found.lead.most - found.lead.least) / 2 == pytest.approx(half, rel=0.15)
    assert found.value.most - found.value.least == pytest.approx(found.lead.most - found.lead.least)


def test_the_spread_of_times_widens_a_lead() -> None:
    """A curve of 100 dB over the whole time, and a median time that is known to about 0.01: about 1 dB."""
    times = 0.02 * np.random.default_rng(0).normal(0, 1, 32)
    curve = [Point([0.2], np.full(64, 30.0)), Point([0.4], np.full(64, 50.0))]
    exact, uncertain = (duel(Point(shares, np.full(64, 40.2)), curve) for shares in ([0.3], list(0.3 + times)))
    assert exact is not None
    assert uncertain is not None
    assert exact.lead == pytest.approx((0.2, 0.2, 0.2))
    assert exact.parted
    assert 0.5 < (uncertain.lead.most - uncertain.lead.least) / 2 < 1.5
    assert not uncertain.parted


def test_draws_agree_with_the_curve_where_nothing_is_uncertain() -> None:
    falling = [point(0.2, 40, 40), point(0.3, 30, 30), point(0.4, 50, 50)]
    for share in (0.2, 0.25, 0.3, 0.35, 0.39, 0.4):
        found, values = duel(point(share, 45, 45), falling), at_time(share, falling)
        assert found is not None
        assert values is not None
        assert found.value == pytest.approx((values[0],) * 3)
