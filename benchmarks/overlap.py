"""Measures how much longer a job takes than its network, that is, how long the network waits for
reading and writing.

Decoding and encoding run in threads alongside the network. Where the network is the slowest stage,
a job should take little longer than the network alone. On a CPU all three share the cores, so the
network's own time grows while they work; the ratio shows only the waiting.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
from common import environment

from rbvsr_deploy.engines import open_engine
from rbvsr_deploy.jobs.upscale_file import upscale_file
from rbvsr_deploy.pretrained import DEFAULT_BUNDLE


@click.command()
@click.argument("clip", type=click.Path(path_type=Path, exists=True))
@click.option("--engine", "model", default=DEFAULT_BUNDLE, type=click.Path(path_type=Path))
@click.option("--device", default="auto", show_default=True)
@click.option("--repeats", default=1, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="JSON file to write.")
def main(clip: Path, model: Path, device: str, repeats: int, json_path: Path | None) -> None:
    """Upscale CLIP and print the seconds of every stage."""
    engine = open_engine(model, device=device)
    result: dict[str, Any] = {**environment(engine), "clip": clip.name, "runs": []}
    print(result["engine"])
    print(
        "".join(f"{name:>9}" for name in ("frames", "total", "network", "read", "write", "waited"))
    )
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            summary = upscale_file(clip, Path(folder, "out.mp4"), engine=engine)
        seconds = summary.seconds
        ratio = seconds["total"] / seconds["network"]
        result["runs"].append({"frames": summary.frames, **seconds, "ratio": round(ratio, 3)})
        stages = (seconds[name] for name in ("total", "network", "read", "write", "waited"))
        print(f"{summary.frames:>9}" + "".join(f"{figure:>9.2f}" for figure in stages))
        print(f"total / network: {ratio:.3f}", flush=True)
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
