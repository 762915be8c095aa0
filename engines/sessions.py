"""Opens the graphs of a bundle as sessions of ONNX Runtime."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

from rbvsr_deploy.bundle import Bundle
from rbvsr_deploy.engines.processors import usable_cores
from rbvsr_deploy.engines.providers import CPU, CUDA, Provider, import_onnxruntime
from rbvsr_deploy.errors import EngineError, first_line

__all__ = ["open_session"]

_CUDA_OPTIONS = {
    "arena_extend_strategy": "kSameAsRequested",
    # An exhaustive search, the default, takes about 70 ms per convolution and size on an H100, and
    # what it finds is not faster.
    "cudnn_conv_algo_search": "HEURISTIC",
    # float32 must be exact: float16 is there for speed.
    "use_tf32": "0",
}


def open_session(
    bundle: Bundle, graph: str, provider: Provider, *, sizes: Mapping[str, int]
) -> Any:
    """Open one graph on a provider.

    Args:
        bundle: an opened bundle.
        graph: its name.
        provider: ``cuda`` leaves to the CPU what it does not support; others take the graph whole
            or not at all.
        sizes: sizes to fix, by the names of the contract, such as {"N": 1, "H": 180}: without
            constant shapes, many providers leave the arithmetic on shapes to the CPU.

    Raises:
        EngineError: the graph cannot be opened there, or is not what the bundle says.
    """
    ort = import_onnxruntime()
    name = provider.execution_provider
    if name == CUDA and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # finds the CUDA libraries that pip installs with it
    options = ort.SessionOptions()
    # With CUDA and plug-ins, only fatal errors: the exception below reports a missing driver.
    options.log_severity_level = 3 if name == CPU else 4
    # The bytes were checked as ONNX and must not be parsed as ONNX Runtime's own format.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # The check has refused graphs with external files. As a second barrier, ONNX Runtime 1.23
    # and later searches only this folder, and a device contains no files.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", os.devnull
    )
    _share_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    # Each graph has a thread pool of its own, and one graph runs at a time. Threads that spin
    # while they wait take the cores from those that work: twice the CPU time per frame. The
    # pool that sessions can share always spins: 1.4 times the CPU time. Left to itself, ONNX
    # Runtime makes a thread per core of the machine, whatever the process may use.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.intra_op_num_threads = usable_cores()
    # A plan of the whole run's memory is one more block beside those of the first run: at
    # 320x180 the published head takes 0.7 GB without it and 1.1 GB with it.
    options.enable_mem_pattern = False
    for size, value in sizes.items():
        options.add_free_dimension_override_by_name(size, value)
    providers: dict[str, Any] = {}
    if provider.whole:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if name == CUDA:
        providers["providers"] = [(CUDA, _CUDA_OPTIONS), CPU]
    elif not provider.devices:
        providers["providers"] = [name]
    try:
        if provider.devices:
            options.add_provider_for_devices(list(provider.devices), dict(provider.options))
        session = ort.InferenceSession(bundle.graph(graph), options, **providers)
    except KeyError:
        raise EngineError(
            f"'{bundle.path}' lacks the graph '{graph}': export the checkpoint again"
        ) from None
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise EngineError(
            f"graph '{graph}' of '{bundle.path}' cannot be opened on {name}: {first_line(error)}"
        ) from error
    if name not in session.get_providers():
        raise EngineError(
            f"{name} did not start here, as its driver or a library is missing: use the CPU",
            parameters=("device",),
        )
    _check_io(bundle, graph, session, sizes=sizes)
    return session


def _check_io(bundle: Bundle, graph: str, session: Any, *, sizes: Mapping[str, int]) -> None:
    """Check that the graph in the file is the one the manifest describes."""
    described = bundle.manifest.graphs[graph]
    for side, values in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        got = [(value.name, list(value.shape)) for value in values]
        want = [
            (item["name"], [sizes.get(size, size) for size in item["shape"]])
            for item in described[side]
        ]
        if got != want:
            raise EngineError(
                f"graph '{graph}' of '{bundle.path}' has the {side} {got} instead of {want}: it "
                "belongs to another model; export the checkpoint again"
            )


@functools.cache
def _share_arena() -> None:
    """Share one pool of host memory for the intermediate results of all graphs.

    Graphs never run at the same time. The pool grows by the requested size: at 320x180 it takes
    0.2 GB in total instead of 0.4.
    """
    onnxruntime = import_onnxruntime()
    onnxruntime.create_and_register_allocator(
        onnxruntime.OrtMemoryInfo(
            "Cpu",
            onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR,
            0,
            onnxruntime.OrtMemType.DEFAULT,
        ),
        onnxruntime.OrtArenaCfg({"arena_extend_strategy": 1}),  # 1: grow by the requested size
    )
