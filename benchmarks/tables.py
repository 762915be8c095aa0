"""Writes the tables of figures in the project's pages, and the schema of results.

The figures come from ``benchmarks/results/``: what the programs in this folder wrote with
``--json``, and what ``rbvsr-bench -o`` wrote under ``machines/``. In a page, a table stands between
``<!-- table: NAME -->`` and ``<!-- end of table -->``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
from common import shortest

from rbvsr_deploy.bench import result as bench_result
from rbvsr_deploy.bench.result import BenchResult, json_schema
from rbvsr_deploy.bench.tables import COLUMNS, markdown_row, short

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "benchmarks" / "README.md", ROOT / "docs" / "tensorrt.md")
SCHEMA = Path(bench_result.__file__).with_name("result.schema.json")

_TABLE = re.compile(
    r"(?<=^<!-- table: )([\w-]+)( -->\n)(.*?)(?=^<!-- end of table -->$)", re.MULTILINE | re.DOTALL
)


def load(name: str) -> Any:
    """Return a result by the name of its file."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(headings: list[str], rows: list[list[str]]) -> str:
    """Format a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    return text.replace("|  |", "| |").replace("|  |", "| |").replace("| --- ", "|---")


def machines() -> str:
    """One row per result of ``rbvsr-bench``, the fastest first."""
    paths = sorted((RESULTS / "machines").glob("*.json"))
    found = [msgspec.json.decode(path.read_bytes(), type=BenchResult) for path in paths]
    found.sort(key=lambda r: -r.throughput.frames_per_second)
    rows = "".join(f"{markdown_row(r)}\n" for r in found)
    return table(list(COLUMNS), []) + rows


def graphs() -> str:
    """Figures of the graphs, counted and measured, for every machine."""
    rows = []
    for path in sorted((RESULTS / "machines").glob("*.json")):
        result = msgspec.json.decode(path.read_bytes(), type=BenchResult)
        for name, g in result.graphs.items():
            floor, share = g.attained.floor_ms, g.attained.matrix_share
            rows.append(
                [
                    f"{result.machine.name}, {result.device}",
                    name + (f" x{g.runs_per_frame}" if g.runs_per_frame > 1 else ""),
                    short(g.counted.flops / 1e9),
                    short(g.counted.bytes / 1e6),
                    short(g.latency_ms.p50),
                    "unknown" if floor is None else short(floor),
                    "unknown" if share is None else f"{100 * share:.0f} %",
                ]
            )
    headings = [
        "machine",
        "graph",
        "GFLOP",
        "MB moved",
        "p50, ms",
        "floor, ms",
        "of matrix ceiling",
    ]
    return table(headings, rows)


def scaling() -> str:
    """Time and memory, one axis at a time."""
    result = load("scaling")
    rows = []
    for p in result["points"]:
        size = f"{p['width']}x{p['height']}"
        value = size if p["axis"] == "size" else str(p[p["axis"]])
        peak = p["peak_host_bytes"]
        rows.append(
            [
                p["axis"],
                value,
                f"{p['ms_per_frame']:.1f}",
                f"{p['network_ms_per_frame']:.1f}",
                f"{p['cpu_ms_per_frame']:.1f}",
                f"{100 * p['spread']:.0f} %",
                "unknown" if peak is None else f"{peak / 2**20:.0f}",
            ]
        )
    headings = ["axis", "value", "ms per frame", "network", "CPU", "spread", "peak memory, MiB"]
    return table(headings, rows)


def command() -> str:
    """The command from several source trees; ratios are to the first."""
    labels = {
        "before": "0.1.0 (a49ab58), its model",
        "after": "this version, the same weights",
        "shipped": "this version, its own model",
    }
    runs = load("command")["runs"]
    first, rows = runs["before"], []
    for name, label in labels.items():
        made = runs[name]
        seconds, cpu = shortest(made, "seconds"), shortest(made, "cpu_seconds")
        network = min(run["stages"]["network"] for run in made)
        rows.append(
            [
                label,
                f"{made[0]['frames'] / seconds:.2f}",
                f"{shortest(first, 'seconds') / seconds:.2f}",
                f"{cpu:.1f}",
                f"{shortest(first, 'cpu_seconds') / cpu:.2f}",
                f"{max(run['peak_mib'] for run in made)}",
                f"{100 * network / seconds:.0f} %",
            ]
        )
    headings = ["", "frames/s", "times", "CPU seconds", "times less", "peak memory, MiB"]
    return table([*headings, "network's share of the time"], rows)


def published() -> str:
    """The published size under ONNX Runtime and eager PyTorch."""
    labels = {"eager": "PyTorch, eager", "onnxruntime": "ONNX Runtime"}
    rows = []
    for name, label in labels.items():
        runs = load("published")["runs"][name]
        figures = (shortest(runs, key) for key in ("per_frame", "cpu_seconds"))
        peak = f"{shortest(runs, 'peak_mib'):.0f}"
        rows.append([label, *(f"{figure:.2f}" for figure in figures), peak])
    return table(["", "seconds per frame", "CPU seconds in all", "peak memory, MiB"], rows)


def lookahead() -> str:
    """Root mean square error by lookahead and clip."""
    first, larger = load("lookahead"), load("lookahead-320x180")
    clips = {_clip(name): clip for name, clip in first["clips"].items()}
    clips |= {f"{_clip(n)}, {larger['size']}": clip for n, clip in larger["clips"].items()}

    def cell(errors: dict[str, float] | None) -> str:
        return "-" if errors is None else f"{errors['rmse']:.2f}"

    rows = [
        [str(ahead), *(cell(clip["lookahead"].get(ahead)) for clip in clips.values())]
        for ahead in next(iter(clips.values()))["lookahead"]
    ]
    rows.append(["float16", *(cell(clip.get("float16")) for clip in clips.values())])
    return table(["N", *clips], rows)


def _clip(stem: str) -> str:
    """Return the last word of a clip's file name: "05_default_juggle" is "juggle"."""
    return stem.rpartition("_")[2]


def seams() -> str:
    """Differences by the way a scene was processed in chunks."""
    result = load("seams")
    ahead = result["continued_with_lookahead"]
    labels = {
        "window": "windows of the exact propagation",
        "continued": f"`--max-scene {result['chunk']}`, {ahead} frames ahead",
        "independent": "independent chunks, as in the published script",
    }
    rows = []
    for way, label in labels.items():
        figures = result["ways"][way]
        levels = (figures[key] for key in ("at_borders", "elsewhere", "largest"))
        cells = [f"{level:.4f}" if level else "0" for level in levels]
        rows.append([label, *cells, f"{figures['step_ratio']:.3f}"])
    return table(["method", "at borders", "elsewhere", "largest", "steps"], rows)


def data_loading() -> str:
    """CPU milliseconds per clip by source, degradations and scheme."""
    rows = []
    parts = ("loading", "sharpening", "degrading", "total")
    for row in load("data_loading")["rows"]:
        start = [row["source"], row["degradations"]]
        for scheme, seconds in row["seconds"].items():
            rows.append([*start, scheme, *(f"{1000 * seconds[part]:.0f}" for part in parts)])
        gain = [f"**{row['ratios'][part]:.2f}**" for part in ("loading", "total")]
        rows.append([*start, "**times faster**", gain[0], "", "", gain[1]])
    headings = ["source", "degradations", "scheme", "loading", "sharpening", "degrading", "whole"]
    return table(headings, rows)


def cleaning_loss() -> str:
    """Training with and without the cleaning loss."""
    labels = {
        "bicubic": "bicubic, not cleaned",
        "cleaning_loss": "with cleaning loss",
        "no_cleaning_loss": "without",
    }
    rows = []
    for name, label in labels.items():
        means = load("training_claims-cleaning")["means"][name]
        figures = [f"{means[key]:.2f}" for key in ("psnr_y", "niqe", "cleaned_psnr_y")]
        residue = means["residue"]
        rows.append([label, *figures, "" if residue is None else f"{residue:.1f}"])
    headings = ["", "PSNR (Y), dB", "NIQE", "PSNR (Y) of cleaned frames, dB"]
    return table([*headings, "change by cleaning, levels of 255"], rows)


def clip_length() -> str:
    """Training with long clips or many."""
    means = load("training_claims-length")["means"]
    names = [*(name for name in means if name != "bicubic"), "bicubic"]
    labels = {"psnr_y": "PSNR (Y), dB", "cleaned_psnr_y": "PSNR (Y) of cleaned frames, dB"}
    rows = [
        [label, *(f"{means[name][key]:.2f}" for name in names)] for key, label in labels.items()
    ]
    return table(["batch x length", *names], rows)


def refinement() -> str:
    """Fixed numbers of cleaning passes against dynamic refinement; the best are bold."""
    means = load("training_claims-refinement")["means"]
    ways = [way.removesuffix(" fixed") for way in means]

    def line(label: str, key: str, digits: int) -> list[str]:
        values = [m[key] for m in means.values()]
        cells = [f"{value:.{digits}f}" for value in values]
        best = values.index(min(values))
        cells[best] = f"**{cells[best]}**"
        return [label, *cells]

    passes = [
        f"{m['cleanings']:.0f}" if way.isdecimal() else f"{m['cleanings']:.1f}"
        for way, m in zip(ways, means.values(), strict=True)
    ]
    rows = [line("NIQE", "niqe", 2), line("BRISQUE", "brisque", 1), ["passes made", *passes]]
    return table(["cleaning passes", *ways], rows)


def precision() -> str:
    """PSNR of lower precisions against float32."""
    rows = []
    for row in load("precision")["rows"]:
        figures = [" and ".join(f"{x:.1f}" for x in row[k]) for k in ("float16", "int8")]
        cells = [f"{figure} dB" if figure else "" for figure in figures]
        rows.append([row["network"], row["how"], *cells, row["blocks"]])
    return table(["network", "", "float16", "int8", "blocks in int8"], rows)


def resizing() -> str:
    """What strengths and sizes add to the network's time, by size of the input."""
    sizes = load("resizing")["sizes"]
    rows = [["network", *(f"{found['network_ms']:.0f} ms" for found in sizes.values())]]
    for label in next(iter(sizes.values()))["graphs"]:
        costs = [found["graphs"][label] for found in sizes.values()]
        cells = (f"{cost['ms']:.1f} ms, {100 * cost['added_share']:.1f} %" for cost in costs)
        rows.append([label, *cells])
    return table(["graph", *sizes], rows)


TABLES: dict[str, Callable[[], str]] = {
    "machines": machines,
    "graphs": graphs,
    "scaling": scaling,
    "command": command,
    "published": published,
    "lookahead": lookahead,
    "seams": seams,
    "data-loading": data_loading,
    "cleaning-loss": cleaning_loss,
    "clip-length": clip_length,
    "refinement": refinement,
    "precision": precision,
    "resizing": resizing,
}


def files() -> Iterator[tuple[Path, str]]:
    """Yield every file that this program writes, and its content."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        yield page, _TABLE.sub(lambda match: f"{match[1]}{match[2]}\n{TABLES[match[1]]()}\n", text)
    yield SCHEMA, json.dumps(json_schema(), indent=1) + "\n"


@click.command()
def main() -> None:
    """Write all tables and the schema again."""
    for path, text in files():
        if path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
