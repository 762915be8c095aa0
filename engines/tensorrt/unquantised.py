"""Returns the graphs that engines were compiled from: where int8 was slower, in float16.

An int8 graph contains its float16 weights and rounds them itself, so that it becomes the float16
graph that it was made from when its roundings are left out.
"""

from __future__ import annotations

from rbvsr_deploy.bundle import Bundle, bundle_in_memory
from rbvsr_deploy.bundle.engine_sets import EngineSet
from rbvsr_deploy.bundle.onnx_reader import read_graph
from rbvsr_deploy.errors import EngineError, MissingDependencyError

__all__ = ["as_compiled", "is_quantised", "unquantised"]

_ROUNDING = ("QuantizeLinear", "DequantizeLinear")


def is_quantised(model: bytes) -> bool:
    """Return whether a serialised graph has convolutions in int8."""
    return any(node.operator in _ROUNDING for node in read_graph(model).nodes)


def unquantised(model: bytes) -> bytes:
    """Return the float16 graph that a serialised int8 graph was made from.

    Raises:
        MissingDependencyError: ``onnx`` is not installed.
        EngineError: the graph contains its weights in int8 only, as those of earlier versions do.
    """
    try:
        import onnx
    except ImportError as error:
        purpose = "changing int8 graphs to float16"
        raise MissingDependencyError("onnx", extra="engines", purpose=purpose) from error
    proto = onnx.load_from_string(model)
    rounded_from: dict[str, str] = {}
    kept = []
    for node in proto.graph.node:
        inputs = [rounded_from.get(name, name) for name in node.input]
        if node.op_type in _ROUNDING:
            rounded_from[node.output[0]] = inputs[0]
        else:
            node.input[:] = inputs
            kept.append(node)
    used = {name for node in kept for name in node.input}
    initializers = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    if any(tensor.data_type == onnx.TensorProto.INT8 for tensor in initializers):
        raise EngineError("the graph contains its weights in int8 only: export it again")
    proto.graph.ClearField("node")
    proto.graph.ClearField("initializer")
    proto.graph.node.extend(kept)
    proto.graph.initializer.extend(initializers)
    return bytes(proto.SerializeToString())


def as_compiled(bundle: Bundle, engine_set: EngineSet) -> Bundle:
    """Return a bundle with the graphs that an engine set of it was compiled from.

    Raises:
        MissingDependencyError, EngineError: as :func:`unquantised`.
    """
    if not engine_set.in_float16:
        return bundle
    graphs = bundle.graphs()
    graphs |= {name: unquantised(graphs[name]) for name in engine_set.in_float16}
    return bundle_in_memory(bundle.path.name, bundle.manifest, graphs)
