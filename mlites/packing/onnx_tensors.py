"""Where the numbers lie in an ONNX file, found by walking its bytes: the rest of the file need not be understood.

Source: "Protocol Buffers: Encoding" (the wire format); onnx.proto3 (field numbers).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from mlites.errors import InputError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
DEEPEST = 64  # graphs within nodes within graphs

# message -> number of a field -> message in it
MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function", 20: "training"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "sparse": {1: "tensor", 2: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
}
DIMS, DATA_TYPE = 1, 2
NUMBERS = {4: 4, 9: None, 10: 8}  # of a tensor: float_data, raw_data, double_data -> bytes of an item where it is fixed
# data type -> bytes of an item; where several share a byte, 1
ITEM_SIZES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 14: 8, 15: 16, 16: 2}


@dataclass(frozen=True)
class Span:
    """Bytes of one tensor.

    Attributes:
        begin, end: offsets in the file.
        item_size: bytes of one number.
        columns: numbers in a row, the first dimension apart; 1 where the dimensions do not fit the bytes.
    """

    begin: int
    end: int
    item_size: int
    columns: int


def find_tensors(model: bytes) -> list[Span]:
    """The numbers of every tensor in a file, in the order in which they lie there.

    Raises:
        InputError: the bytes are no protocol buffer, or hold no graph.
    """
    graphs = [1 for number, _, _, _ in _fields(model, 0, len(model)) if number == 7]
    if not graphs:
        raise InputError("not an ONNX model: no graph in it")
    return list(_walk(model, 0, len(model), "model", 0))


def _walk(model: bytes, begin: int, end: int, message: str, depth: int) -> Iterator[Span]:
    if depth > DEEPEST:
        raise InputError(f"ONNX model: graphs lie more than {DEEPEST} deep in one another")
    if message == "tensor":
        yield from _tensor(model, begin, end)
        return
    inner = MESSAGES[message]
    for number, kind, first, last in _fields(model, begin, end):
        if kind == BYTES and number in inner:
            yield from _walk(model, first, last, inner[number], depth + 1)


def _tensor(model: bytes, begin: int, end: int) -> Iterator[Span]:
    dims, data_type, numbers = list[int](), 0, list[tuple[int, int, int]]()
    for number, kind, first, last in _fields(model, begin, end):
        if number == DIMS and kind == VARINT:
            dims.append(_varint(model, first, end)[0])
        elif number == DIMS and kind == BYTES:
            while first < last:
                value, first = _varint(model, first, last)
                dims.append(value)
        elif number == DATA_TYPE and kind == VARINT:
            data_type = _varint(model, first, end)[0]
        elif number in NUMBERS and kind == BYTES:
            numbers.append((number, first, last))
    for number, first, last in numbers:
        size = NUMBERS[number] or ITEM_SIZES.get(data_type, 1)
        size = size if (last - first) % size == 0 else 1
        items, columns = (last - first) // size, 1
        if len(dims) > 1 and dims[0] > 0 and items % dims[0] == 0:
            columns = max(items // dims[0], 1)
        yield Span(first, last, size, columns)


def _fields(model: bytes, begin: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, and where the content begins and ends, of each field of a message."""
    while begin < end:
        tag, begin = _varint(model, begin, end)
        number, kind = tag >> 3, tag & 7
        first = begin
        if kind == VARINT:
            begin = _varint(model, begin, end)[1]
        elif kind == BYTES:
            size, first = _varint(model, begin, end)
            begin = first + size
        elif kind in (FIXED64, FIXED32):
            begin += 8 if kind == FIXED64 else 4
        else:
            raise InputError(f"not an ONNX model: wire type {kind} at byte {first}")
        if begin > end or number == 0:
            raise InputError(f"not an ONNX model: broken or cut off at byte {first}")
        yield number, kind, first, begin


def _varint(model: bytes, begin: int, end: int) -> tuple[int, int]:
    """Value and the offset after it."""
    value = 0
    for place in range(10):
        if begin + place >= end:
            break
        byte = model[begin + place]
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, begin + place + 1
    raise InputError(f"not an ONNX model: broken or cut off at byte {begin}")
