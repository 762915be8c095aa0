"""Opens engines of small networks of random weights, and upscales clips with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.engines import Engine, open_engine
from rbvsr_deploy.runtime.memory_plan import MemoryPlan
from rbvsr_deploy.runtime.output_size import Target
from rbvsr_deploy.runtime.stream import Settings, Stream
from tests.support.cuda_double import DriverDouble
from tests.support.tensorrt_double import open_double, small_bundle


@contextmanager
def engine_of(kind: str, folder: Path, *, cleans: bool = True) -> Iterator[Engine]:
    """Open the small bundle on ONNX Runtime, or on TensorRT with its doubles; in float16 if the
    kind ends so ("tensorrt16").
    """
    bundle = small_bundle(
        folder / "small.plan",
        precision="float16" if kind.endswith("16") else "float32",
        cleans=cleans,
    )
    with (
        open_engine(bundle.path, device="cpu")
        if kind.startswith("onnxruntime")
        else open_double(bundle, DriverDouble())
    ) as engine:
        yield engine


def upscaled(
    engine: Engine,
    clip: NDArray[Any],
    *,
    target: Target | None = None,
    plan: MemoryPlan | None = None,
    cut_at: int | None = None,
    **settings: Any,
) -> NDArray[Any]:
    """Upscale a clip (T, H, W, 3), with a memory plan and a cut of one's own if given."""
    with Stream(
        engine,
        Settings(**settings),
        size=clip.shape[1:3],
        deep=clip.dtype == np.uint16,
        target=target,
    ) as stream:
        if plan is not None:
            stream._context.budget.plan = plan
        frames: list[Any] = []
        for i, image in enumerate(clip):
            frames += stream.push(image, cut=i == cut_at)
        frames += stream.flush()
    return np.stack([frame.image for frame in frames])
