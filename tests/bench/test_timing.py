"""Tests the summaries of measurements."""

from __future__ import annotations

import pytest

from rbvsr_deploy.bench.timing import FULL, QUICK, percentile, repeat, spread, summarise


def test_percentiles_are_nearest_ranks() -> None:
    """Each is one of the measurements, as MLPerf defines them."""
    values = [float(n) for n in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.5, 0.9, 0.99, 1.0)] == [50, 90, 99, 100]
    assert percentile([3.0, 1.0, 2.0], 0.9) == 3
    assert percentile([1.0], 0.01) == 1


def test_few_measurements_have_no_99th_percentile() -> None:
    assert summarise([0.001] * 99).p99 is None
    times = summarise([0.001] * 100)
    assert times.p99 == pytest.approx(1)
    assert times.count == 100
    mixed = summarise([0.001, 0.004, 0.002])
    assert [mixed.p50, mixed.minimum, mixed.maximum] == pytest.approx([2, 1, 4])


def test_both_least_numbers_are_reached() -> None:
    results, _ = repeat(lambda: 1.0, least_runs=3, least_seconds=0)
    assert results == [1.0] * 3
    results, seconds = repeat(lambda: 1.0, least_runs=1, least_seconds=0.02)
    assert seconds >= 0.02
    assert len(results) > 1


def test_spread_is_relative_to_the_median() -> None:
    assert spread([1.0, 2.0, 2.5]) == pytest.approx(0.75)
    assert spread([2.0, 2.0]) == 0


def test_a_comparable_run_is_as_long_as_mlperfs() -> None:
    """A minute at least, and as many queries as a 90th percentile needs."""
    assert FULL.comparable
    assert FULL.seconds >= 60
    assert FULL.queries >= 64
    assert not QUICK.comparable
