"""An ONNX file packed for download and restored bit for bit: what pruning and weight sharing save, a download saves.

The numbers of each tensor are cut out of the file where they lie. Few distinct ones become a codebook, the cells that
do not hold the commonest, and indices; others are split into planes of bytes; all is entropy-coded under models that
learn each tensor's statistics. What is left of the file is compressed by LZMA. Unpacking needs NumPy alone.

Source: Han, Mao & Dally (2016), "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization
and Huffman Coding", sections 3 and 4, with adaptive entropy coding for its Huffman code and its relative indices.
"""

import dataclasses
import hashlib
import lzma
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlites.errors import InputError
from mlites.packing.entropy_coding import (
    Bytes,
    Coder,
    Decoder,
    Encoder,
    Meter,
    code_flags,
    code_symbols,
    row_width,
)
from mlites.packing.onnx_tensors import find_tensors

MAGIC = b"mlz\x01"  # its last byte is the format's version
LARGEST_FILE = 1 << 31  # bytes: that of any protocol buffer
LARGEST_FACTOR = 4096  # a packed file is no smaller than this part of its original, which bounds what unpacking takes
LEAST_BYTES = 64  # of a tensor to be cut out
MOST_KINDS = 256  # distinct numbers of a tensor with a codebook
BACKGROUND = 0.4  # share of the cells from which on those of the commonest number are coded apart
CLASSES = (1, 8)  # of rows: whichever takes less
ITEM_SIZES = (1, 2, 4, 8)
POOL_COLUMNS = 512
LEAST_GAIN = 0.02  # of a plane's bytes, below which they lie as they are
SAMPLE = 1 << 14
NO_BYTES = np.zeros(0, np.uint8)
FILTERS: list[dict[str, Any]] = [{"id": lzma.FILTER_LZMA1, "dict_size": 1 << 22, "lc": 3, "lp": 0, "pb": 0}]

Unsigned = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class _Plan:
    """How the cells of a tensor, or of a plane of bytes, are coded.

    Attributes:
        count: of cells.
        columns: in a row.
        kinds: distinct numbers in the codebook, which lies in the pool (that of all 256 bytes need not); 0 without one.
        background: 1 + the index of the number whose cells are coded apart; 0 where none is. Without codebook it is 1,
            and that number lies in the pool, followed by those of the other cells.
        classes: of rows, each with frequencies of its own.
    """

    count: int
    columns: int
    kinds: int = 0
    background: int = 0
    classes: int = 1

    def code(self, coder: Coder, given: Bytes | None = None) -> Bytes:
        """Write the given indices (count,) into the codebook, or read them; without one, 1 where not background."""
        starts = np.arange(0, self.count, row_width(self.columns))
        if not self.background:
            return code_symbols(coder, np.diff(starts, append=self.count), self.kinds, self.classes, given)
        common = self.background - 1
        cells = None if given is None else (given != common).astype(np.uint8)
        held = code_flags(coder, self.count, self.columns, cells) > 0
        if not self.kinds:
            return held.astype(np.uint8)
        lengths = np.add.reduceat(held, starts, dtype=np.int64)
        others = None if given is None else given[held] - (given[held] > common)
        others = code_symbols(coder, lengths, self.kinds - 1, self.classes, others)
        found = np.full(self.count, common, np.uint8)
        found[held] = others + (others >= common)
        return found

    def cost(self, indices: Bytes) -> float:
        """Bits that the indices (count,) would take."""
        meter = Meter()
        self.code(meter, indices)
        return meter.bits

    def best(self, indices: Bytes) -> "_Plan":
        """The number of classes that takes the fewest bits."""
        plans = [dataclasses.replace(self, classes=classes) for classes in CLASSES]
        return min(plans, key=lambda plan: plan.cost(indices))


@dataclass(frozen=True)
class _Tensor:
    """Numbers cut out of the file: bytes between the tensor before and this one, bytes of a number, and the plan."""

    gap: int
    item_size: int
    plan: _Plan

    def pooled(self, indices: Bytes | None) -> int:
        """Numbers that lie in the pool."""
        if indices is None:
            return self.plan.count
        if self.item_size == 1 and self.plan.kinds == MOST_KINDS:
            return 0
        return self.plan.kinds or 1 + int(np.count_nonzero(indices))


def pack(model: bytes) -> bytes:
    """Pack an ONNX file; `unpack` restores it bit for bit, which is checked before this returns.

    Raises:
        InputError: the bytes are no ONNX model, or more than 2 GiB.
    """
    if len(model) >= LARGEST_FILE:
        raise InputError(f"an ONNX file must be smaller than 2 GiB to be packed, got {len(model)} bytes")
    encoder, numbers, rest, place, cells = Encoder(), list[int](), list[bytes](), 0, 0
    pools: dict[int, list[Unsigned]] = {size: [] for size in ITEM_SIZES}
    for span in find_tensors(model):
        if span.end - span.begin < LEAST_BYTES:
            continue
        size = span.item_size if span.item_size in ITEM_SIZES else 1
        items = np.frombuffer(model, f"<u{size}", (span.end - span.begin) // size, span.begin)
        pooled, plan = _encode(items, span.columns * span.item_size // size, encoder)
        pools[size].append(pooled)
        numbers += [span.begin - place, size, plan.count, plan.columns, plan.kinds, plan.background, plan.classes]
        cells += plan.count
        rest.append(model[place : span.begin])
        place = span.end
    head, plain = list(map(_varint, [len(rest), *numbers])), list[bytes]()
    for pool in pools.values():
        for plane in _planes(np.concatenate(pool)) if any(map(len, pool)) else []:
            book, plan = _encode_plane(plane, encoder)
            head += map(_varint, [plan.kinds, plan.background, plan.classes])
            (head if plan.kinds else plain).append(book)
    content = b"".join([*head, *rest, model[place:]])
    packed = _frame(model, content, encoder.finish(_lanes(cells)), b"".join(plain))
    if unpack(packed) != model:
        raise RuntimeError("unpacking does not restore the model")
    return packed


def packed_size(model: bytes) -> int:
    """Bytes that an ONNX file takes to download."""
    return len(pack(model))


def unpack(packed: bytes) -> bytes:
    """The ONNX file that was packed.

    What it takes is bounded by a few times 4096 times the packed size, and nothing in the file is run.

    Raises:
        InputError: not a packed model, of another version, cut off or damaged.
    """
    digest, size, head, coded, plain = _unframe(packed)
    model = _restore(size, head, coded, plain)
    if len(model) != size or hashlib.sha256(model).digest() != digest:
        raise InputError("packed model: damaged, as it unpacks to something else than its original")
    return model


def _encode(items: Unsigned, columns: int, encoder: Encoder) -> tuple[Unsigned, _Plan]:
    """Write the numbers (n,) of a tensor as far as indices tell them; the rest is returned, for the pool."""
    values, counts = np.unique(items[:SAMPLE], return_counts=True)
    if len(values) <= MOST_KINDS:
        book, indices, counts = np.unique(items, return_inverse=True, return_counts=True)
        if len(book) <= MOST_KINDS and 2 * len(book) <= len(items):
            given = indices.astype(np.uint8)
            if items.itemsize == 1 and len(book) > MOST_KINDS // 4 and len(items) >= MOST_KINDS:
                book, given, counts = book[:0], items, np.bincount(items, minlength=MOST_KINDS)
            plan = _Plan(len(items), columns, len(book) or MOST_KINDS, _background(counts)).best(given)
            if plan.cost(given) / 8 + book.nbytes > items.nbytes:
                return items, _Plan(len(items), columns)
            plan.code(encoder, given)
            return book, plan
        values = book
    if not _background(counts):
        return items, _Plan(len(items), columns)
    common = values[counts.argmax()]
    plan, held = _Plan(len(items), columns, background=1), (items != common).astype(np.uint8)
    plan.code(encoder, held)
    return np.append(common, items[held > 0]).astype(items.dtype), plan


def _encode_plane(plane: Bytes, encoder: Encoder) -> tuple[bytes, _Plan]:
    """Write a plane of bytes (n,) as indices into a codebook, which is returned as a bitmap; or return the bytes."""
    counts = np.bincount(plane, minlength=256)
    book, shares = np.flatnonzero(counts).astype(np.uint8), counts[counts > 0] / len(plane)
    if float(-(shares * np.log2(shares)).sum()) > 8 * (1 - LEAST_GAIN):
        return plane.tobytes(), _Plan(len(plane), POOL_COLUMNS)
    given = np.searchsorted(book, plane).astype(np.uint8)
    plan = _Plan(len(plane), POOL_COLUMNS, len(book), _background(counts[book])).best(given)
    if plan.cost(given) / 8 + 32 > len(plane):
        return plane.tobytes(), _Plan(len(plane), POOL_COLUMNS)
    plan.code(encoder, given)
    return np.packbits(counts > 0).tobytes(), plan


def _background(counts: NDArray[np.int64]) -> int:
    """1 + the index of the commonest number, given how often each occurs, if it is common enough; else 0."""
    common = int(counts.argmax())
    return 1 + common if len(counts) > 1 and counts[common] >= BACKGROUND * counts.sum() else 0


def _restore(size: int, content: bytes, coded: bytes, plain: bytes) -> bytes:
    """The model from what is around its numbers, numbers as coded, and bytes that lie as they are."""
    head, left = _Reader(content), _Reader(plain)
    tensors = _read_tensors(head, size)
    decoder = Decoder(coded, _lanes(sum(one.plan.count for one in tensors)))
    indices = [one.plan.code(decoder) if one.plan.kinds or one.plan.background else None for one in tensors]
    pools = dict[int, _Pool]()
    for item_size in ITEM_SIZES:
        count = sum(
            one.pooled(found) for one, found in zip(tensors, indices, strict=True) if one.item_size == item_size
        )
        planes = [_read_plane(head, left, count, decoder) if count else NO_BYTES for _ in range(item_size)]
        pools[item_size] = _Pool(_join(planes))
    decoder.finish()
    model = bytearray()
    for tensor, found in zip(tensors, indices, strict=True):
        pooled = pools[tensor.item_size].take(tensor.pooled(found))
        if found is None:
            items = pooled
        elif tensor.plan.kinds:
            items = pooled[found] if len(pooled) else found
        else:
            items = np.full(len(found), pooled[0])
            items[found > 0] = pooled[1:]
        model += head.take(tensor.gap) + items.tobytes()
    return bytes(model) + head.rest()


def _read_tensors(head: "_Reader", size: int) -> list[_Tensor]:
    """What is recorded of each tensor, of a model of so many bytes."""
    tensors, left = list[_Tensor](), size
    for _ in range(head.number(size)):
        gap, item_size, count = head.number(left), head.number(max(ITEM_SIZES)), head.number(left)
        left -= gap + item_size * count
        if item_size not in ITEM_SIZES or count < 1 or left < 0:
            raise InputError("packed model: damaged, as its tensors do not fit its size")
        tensors.append(_Tensor(gap, item_size, _read_plan(head, count, head.number(count))))
    return tensors


def _read_plan(head: "_Reader", count: int, columns: int) -> _Plan:
    plan = _Plan(count, columns, *(head.number(MOST_KINDS) for _ in range(3)))
    possible = columns > 0 and plan.kinds <= count and plan.background <= max(plan.kinds, 1) and plan.classes in CLASSES
    if not possible or (plan.kinds == 1 and plan.background):
        raise InputError("packed model: damaged, as the plan of a tensor is impossible")
    return plan


def _read_plane(head: "_Reader", plain: "_Reader", count: int, decoder: Decoder) -> Bytes:
    plan = _read_plan(head, count, POOL_COLUMNS)
    if not plan.kinds:
        return np.frombuffer(plain.take(count), np.uint8)
    book = np.flatnonzero(np.unpackbits(np.frombuffer(head.take(32), np.uint8))).astype(np.uint8)
    if len(book) != plan.kinds:
        raise InputError("packed model: damaged, as a codebook is not as long as it says")
    return book[plan.code(decoder)]


def _planes(items: Unsigned) -> list[Bytes]:
    """The numbers' bytes, highest first, each rotated by a bit: a float's exponent then fills its first byte."""
    bits = 8 * items.itemsize
    rotated = (items << 1 | items >> (bits - 1)).astype(items.dtype.newbyteorder(">"))
    return list(rotated.view(np.uint8).reshape(-1, items.itemsize).T.copy())


def _join(planes: list[Bytes]) -> Unsigned:
    rotated = np.stack(planes, 1).reshape(-1).view(f">u{len(planes)}").astype(f"<u{len(planes)}")
    joined: Unsigned = np.bitwise_or(rotated >> 1, rotated << (8 * len(planes) - 1), dtype=rotated.dtype)
    return joined


def _lanes(cells: int) -> int:
    """Symbols coded at a time: each lane takes 2 to 4 bytes, so there are few for small files, and more for speed."""
    return min(max(1 << (cells >> 14).bit_length(), 4), 1024)


def _frame(model: bytes, head: bytes, coded: bytes, plain: bytes) -> bytes:
    squeezed = lzma.compress(head, lzma.FORMAT_RAW, filters=FILTERS)
    sizes = [len(model), len(head), len(squeezed), len(coded), len(plain)]
    packed = b"".join([MAGIC, hashlib.sha256(model).digest(), *map(_varint, sizes), squeezed, coded, plain])
    return packed.ljust(len(model) // LARGEST_FACTOR, b"\0")


def _unframe(packed: bytes) -> tuple[bytes, int, bytes, bytes, bytes]:
    """Digest and size of the model, and the three parts that `_restore` takes."""
    reader = _Reader(packed)
    if packed[:3] != MAGIC[:3]:
        raise InputError("not a packed model: it does not begin as one")
    version = reader.take(4)[3]
    if version != MAGIC[3]:
        raise InputError(f"packed model: format version is {version}, this release reads {MAGIC[3]}")
    digest = reader.take(32)
    size = reader.number(min(LARGEST_FILE, (len(packed) + 1) * LARGEST_FACTOR))
    head_size, *sizes = (reader.number(2 * size + 4096) for _ in range(4))
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=FILTERS)
    squeezed, coded, plain = (reader.take(one) for one in sizes)
    try:
        head = decompressor.decompress(squeezed, max_length=head_size)
    except lzma.LZMAError:
        head = b""
    if len(head) != head_size or reader.rest().strip(b"\0"):
        raise InputError("packed model: damaged, as its sizes do not fit")
    return digest, size, head, coded, plain


def _varint(number: int) -> bytes:
    """Seven bits a byte, lowest first; the highest bit says that more follow."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


class _Pool:
    """Numbers of many tensors, one after another."""

    def __init__(self, numbers: Unsigned) -> None:
        self.numbers, self.place = numbers, 0

    def take(self, count: int) -> Unsigned:
        """The next numbers."""
        self.place += count
        return self.numbers[self.place - count : self.place]


class _Reader:
    """Reads from the front."""

    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count > len(self.content) - self.place:
            raise InputError("packed model: cut off")
        self.place += count
        return self.content[self.place - count : self.place]

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self.content) - self.place)

    def number(self, most: int) -> int:
        """The next number, of at most so much."""
        value = 0
        for shift in range(0, 63, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                break
        if byte > 127 or value > most:
            raise InputError("packed model: damaged, as a size is impossible")
        return value
