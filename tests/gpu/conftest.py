"""Provides the fixtures of the tests that need an NVIDIA GPU.

Without a GPU these tests are skipped, or fail if ``RBVSR_REQUIRE_GPU=1`` is set.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rbvsr_deploy.engines.cuda.driver import CudaDriver
from rbvsr_deploy.engines.cuda.open import open_driver
from rbvsr_deploy.engines.tensorrt.build import BuildOptions, describe_gpu
from rbvsr_deploy.engines.tensorrt.compile import flavour_for
from rbvsr_deploy.errors import EngineError
from rbvsr_deploy.export.to_bundle import export_bundle
from rbvsr_deploy.pretrained import DEFAULT_CHECKPOINT


@pytest.fixture(scope="session")
def gpu() -> CudaDriver:
    """Provide the GPU, with a TensorRT that runs on it."""
    try:
        driver = open_driver()
        flavour_for(describe_gpu(driver), options=BuildOptions())
    except EngineError as error:
        if os.environ.get("RBVSR_REQUIRE_GPU") == "1":
            pytest.fail(f"RBVSR_REQUIRE_GPU is set, but {error}", pytrace=False)
        pytest.skip(str(error))
    return driver


@pytest.fixture(autouse=True, scope="session")
def cache(gpu: CudaDriver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Provide an initially empty cache of compiled engines."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RBVSR_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def compact_float16(gpu: CudaDriver, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the compact model to a float16 bundle."""
    path = tmp_path_factory.mktemp("compact") / "float16.plan"
    export_bundle(DEFAULT_CHECKPOINT, path, precision="float16")
    return path
