"""What is wrong with an ONNX file that shows without running it: no memory is spent on what the file claims."""

import math
import stat
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from mlites.errors import InputError

LARGEST_BYTES = (1 << 31) - 1  # of one protobuf message
PACKED_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}  # bits a value where two share a byte
FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def read_model(path: Path, *, alone: bool) -> onnx.ModelProto:
    """Parse a model and compare every tensor that it stores with what it claims to store.

    Args:
        path: ONNX file.
        alone: all weights must lie within it; else they may lie in other files of its folder. These are not read.

    Raises:
        InputError: with the file and the fault.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{path}: not a file; give an ONNX file")
        if found.st_size > LARGEST_BYTES:
            raise InputError(f"{path}: {found.st_size >> 20} MiB; an ONNX file holds at most 2 GiB, weights beside it")
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise InputError(f"{path}: cannot read the model: {error.strerror}") from None
    except InputError:
        raise
    except Exception:  # protobuf's, whose module has no types
        raise InputError(f"{path}: not an ONNX file, or cut short; export the model again") from None
    if not model.graph.output:
        what = "names no output" if model.graph.node else "holds no graph"
        raise InputError(f"{path}: {what}; export the model again")
    for tensor in stored_tensors(model):
        external = tensor.data_location == TensorProto.EXTERNAL
        if external and alone:
            raise InputError(
                f"{path}: weight {tensor.name[:80]!r} lies in another file ({_entry(tensor, 'location')[:80]}); "
                "save the model with all weights inside model.onnx"
            )
        fault = _fault_beside(tensor, path.parent) if external else _fault(tensor)
        if fault:
            raise InputError(f"{path}: weight {tensor.name[:80]!r} {fault}; export the model again")
    return model


def stored_tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every tensor stored in the model, in nested graphs and functions too."""
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes.extend(graph.node)
        else:
            for attribute in nodes.pop().attribute:
                yield from ([attribute.t] if attribute.HasField("t") else [])
                yield from attribute.tensors
                graphs.extend((attribute.g, *attribute.graphs))


def _fault(tensor: TensorProto) -> str | None:
    if any(edge < 0 for edge in tensor.dims):
        return f"has shape {_show(tensor)}"
    if tensor.HasField("raw_data"):
        claimed, held = _claimed_bytes(tensor), len(tensor.raw_data)
        return None if claimed in (None, held) else f"claims {_show(tensor)}, {claimed} bytes, but holds {held}"
    held = max(len(getattr(tensor, name)) for name in FIELDS)
    claimed = math.prod(tensor.dims)
    if (name := _type(tensor)) in PACKED_BITS:
        claimed = -(-claimed * PACKED_BITS[name] // 8)
    elif name.startswith("COMPLEX"):
        claimed *= 2
    return None if held == claimed else f"claims {_show(tensor)}, but holds {held} values"


def _fault_beside(tensor: TensorProto, folder: Path) -> str | None:
    """What is wrong with a tensor whose bytes are in another file, which must be one of the folder."""
    location = _entry(tensor, "location")
    place, shown = folder / location, location[:80]
    if not location or Path(location).is_absolute() or not place.resolve().is_relative_to(folder.resolve()):
        return f"lies outside the model's folder ({shown or 'no place named'})"
    if not place.is_file():
        return f"lies in {shown}, which is no file of the model's folder"
    try:
        offset = int(_entry(tensor, "offset") or 0)
        length = int(_entry(tensor, "length") or place.stat().st_size - offset)
    except ValueError:
        return f"lies in {shown} at an offset that is no number"
    claimed = None if any(edge < 0 for edge in tensor.dims) else _claimed_bytes(tensor)
    if offset < 0 or length < 0 or offset + length > place.stat().st_size or claimed not in (None, length):
        return f"claims {_show(tensor)}, which {shown} does not hold"
    return None


def _claimed_bytes(tensor: TensorProto) -> int | None:
    """What the shape asks for; None for a type unknown here, which the runtime refuses by itself."""
    name, elements = _type(tensor), int(math.prod(tensor.dims))
    if name in PACKED_BITS:
        return -(-elements * PACKED_BITS[name] // 8)
    try:
        return elements * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (KeyError, TypeError, ValueError):
        return None


def _type(tensor: TensorProto) -> str:
    known = tensor.data_type in TensorProto.DataType.values()
    return TensorProto.DataType.Name(tensor.data_type) if known else "unknown"


def _entry(tensor: TensorProto, key: str) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == key), "")


def _show(tensor: TensorProto) -> str:
    edges = [str(edge) for edge in tensor.dims[:8]]
    return f"[{', '.join(edges)}{', ...' if len(tensor.dims) > 8 else ''}] of {_type(tensor).lower()}"
