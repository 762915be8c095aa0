"""Tests the plots of a result."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from rbvsr_deploy.bench.plot import draw
from rbvsr_deploy.bench.result import BenchResult, Ceilings


@pytest.mark.slow
def test_a_plot_is_drawn(tmp_path: Path, result: BenchResult) -> None:
    """As PNG or as SVG, the same bytes each time."""
    draw(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    draw(result, tmp_path / "one.svg")
    draw(result, tmp_path / "two.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    text = (tmp_path / "one.svg").read_text(encoding="utf-8")
    assert "measured ceilings" in text


@pytest.mark.slow
def test_plots_of_a_result_without_ceilings(tmp_path: Path, result: BenchResult) -> None:
    """Nothing is drawn that was not measured."""
    none = Ceilings(matrix_flops=None, copy_bytes=None, method="none")
    graphs = {
        name: msgspec.structs.replace(
            graph, attained=msgspec.structs.replace(graph.attained, floor_ms=None)
        )
        for name, graph in result.graphs.items()
    }
    throughput = msgspec.structs.replace(
        result.throughput,
        attained=msgspec.structs.replace(result.throughput.attained, floor_ms=None),
    )
    changed = msgspec.structs.replace(result, ceilings=none, graphs=graphs, throughput=throughput)
    draw(changed, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert "ceilings" not in text
    assert "floor" not in text
