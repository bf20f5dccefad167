"""Reads the header of a GGUF file (versions 2 and 3, little-endian) without trusting a byte of it.

Every count and length is compared with what is left of the file before anything is allocated, in unbounded integers.
What the values mean is not known here. The layout is that of the GGUF specification in the ggml repository; reading
it ourselves is what makes the bounds certain, and it opens a file some thirty times faster than the format's library.
"""

from __future__ import annotations

import itertools
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tampu.core.errors import CheckpointError
from tampu.model.quantization import BLOCK_SIZES, GGML_TYPE_NAMES, convertible_type

_MAX_METADATA = 1 << 16
_MAX_TENSORS = 1 << 16
_MAX_STRING_BYTES = 1 << 26
_MAX_STRINGS = 1 << 22  # in one array: vocabularies and merge lists have some hundred thousand
_MAX_HEADER_BYTES = 1 << 29
_MAX_NAME_BYTES = 1 << 10
_MAX_DIMENSIONS = 4
_MAX_ALIGNMENT = 1 << 20

_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_STRING, _ARRAY = 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor lies. `shape` has the row length last (the file's order reversed)."""

    name: str
    qtype: str  # GGUF's spelling; native or convertible
    shape: tuple[int, ...]
    offset: int  # from the start of the file
    num_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Metadata as Python values (numeric arrays as NumPy arrays, string arrays as tuples), and the tensors."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_gguf_header(path: Path, data: mmap.mmap) -> GgufHeader:
    """Parse and check. Raises CheckpointError naming file, place and reason."""
    cursor = _Cursor(str(path), data)
    if cursor.take(4, "the magic number") != b"GGUF":
        raise CheckpointError(str(path), "is not a GGUF file (it does not begin with 'GGUF')")
    version = cursor.u32("the version")
    if version not in (2, 3):
        reason = "is big-endian" if version & 0xFFFF == 0 and version else f"has GGUF version {version}"
        raise CheckpointError(str(path), f"{reason}; little-endian versions 2 and 3 can be read")
    # The smallest tensor entry is 32 bytes (empty name, one dimension), the smallest metadata entry 13.
    num_tensors = cursor.count("the number of tensors", _MAX_TENSORS, 32)
    num_metadata = cursor.count("the number of metadata entries", _MAX_METADATA, 13)
    metadata = _read_metadata(cursor, num_metadata)
    entries = _read_tensor_entries(cursor, num_tensors)
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
        raise CheckpointError(str(path), f"general.alignment is {alignment!r}, must be a power of two")
    data_begin = (cursor.offset + alignment - 1) // alignment * alignment
    return GgufHeader(metadata, _place_tensors(cursor, entries, data_begin, alignment))


class _Cursor:
    """A reading position that cannot leave the file."""

    def __init__(self, file: str, data: mmap.mmap) -> None:
        self.file = file
        self.size = len(data)
        self.offset = 0
        self._data = data
        self._limit = min(self.size, _MAX_HEADER_BYTES)

    def fail(self, reason: str) -> CheckpointError:
        return CheckpointError(self.file, reason)

    def need(self, num_bytes: int, what: str) -> None:
        left = self._limit - self.offset
        if num_bytes > left:
            raise self.fail(
                f"is truncated or corrupt: {what} at byte {self.offset} needs {num_bytes} bytes, {left} are left"
            )

    def take(self, num_bytes: int, what: str) -> bytes:
        self.need(num_bytes, what)
        begin = self.offset
        self.offset += num_bytes
        return self._data[begin : self.offset]

    def u32(self, what: str) -> int:
        return int(_U32.unpack(self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack(self.take(8, what))[0])

    def count(self, what: str, limit: int, least_bytes_each: int) -> int:
        value = self.u64(what)
        if value > limit:
            raise self.fail(f"is corrupt: {what} is {value}, more than {limit}")
        self.need(value * least_bytes_each, what)
        return value

    def text(self, what: str, limit: int = _MAX_STRING_BYTES) -> str:
        length = self.u64(what)
        if length > limit:
            raise self.fail(f"is corrupt: {what} has a length of {length} bytes, more than {limit}")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"is corrupt: {what} before byte {self.offset} is not UTF-8") from error

    def texts(self, what: str, count: int) -> tuple[str, ...]:
        """`count` strings. The same checks as `text`, in one loop: a vocabulary has hundreds of thousands."""
        data, limit, offset, unpack = self._data, self._limit, self.offset, _U64.unpack_from
        values = []
        for _ in range(count):
            begin = offset + 8
            length = unpack(data, offset)[0] if begin <= limit else limit
            offset = begin + length
            if offset > limit or length > _MAX_STRING_BYTES:
                raise self.fail(f"is truncated or corrupt: {what} leaves the file at byte {begin}")
            values.append(data[begin:offset])
        self.offset = offset
        try:
            return tuple([value.decode("utf-8") for value in values])
        except UnicodeDecodeError as error:
            raise self.fail(f"is corrupt: {what} before byte {offset} is not UTF-8") from error


def _read_metadata(cursor: _Cursor, num_entries: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for index in range(num_entries):
        key = cursor.text(f"the key of metadata entry {index}", _MAX_NAME_BYTES)
        if key in metadata:
            raise cursor.fail(f"is corrupt: metadata key {key!r} appears twice")
        value_type = cursor.u32(f"the type of {key!r}")
        metadata[key] = _read_value(cursor, value_type, key)
    return metadata


def _read_value(cursor: _Cursor, value_type: int, key: str) -> Any:
    if value_type == _STRING:
        return cursor.text(f"metadata {key!r}")
    if value_type == _ARRAY:
        return _read_array(cursor, key)
    scalar = _SCALARS.get(value_type)
    if scalar is None:
        raise cursor.fail(f"is corrupt: metadata {key!r} has the unknown type {value_type}")
    return scalar.unpack(cursor.take(scalar.size, f"metadata {key!r}"))[0]


def _read_array(cursor: _Cursor, key: str) -> Any:
    what = f"the array {key!r}"
    element_type = cursor.u32(what)
    if element_type == _STRING:
        return cursor.texts(what, cursor.count(f"the length of {what}", _MAX_STRINGS, 8))
    scalar = _SCALARS.get(element_type)
    if scalar is None:
        raise cursor.fail(f"is corrupt or unsupported: {what} has elements of type {element_type}")
    length = cursor.count(f"the length of {what}", _MAX_HEADER_BYTES, scalar.size)
    raw = cursor.take(length * scalar.size, what)
    return np.frombuffer(raw, dtype=np.dtype(scalar.format))


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor entry as written: nothing checked against the data yet."""

    name: str
    dimensions: tuple[int, ...]  # row length first
    ggml_type: int
    offset: int  # from the start of the data


def _read_tensor_entries(cursor: _Cursor, num_tensors: int) -> list[_Entry]:
    entries = []
    seen: set[str] = set()
    for index in range(num_tensors):
        name = cursor.text(f"the name of tensor {index}", _MAX_NAME_BYTES)
        if name in seen:
            raise CheckpointError(cursor.file, "appears twice", tensor=name)
        seen.add(name)
        num_dimensions = cursor.u32(f"the dimensions of {name!r}")
        if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
            raise CheckpointError(cursor.file, f"has {num_dimensions} dimensions, must have 1 to 4", tensor=name)
        dimensions = struct.unpack(f"<{num_dimensions}Q", cursor.take(8 * num_dimensions, f"the shape of {name!r}"))
        ggml_type = cursor.u32(f"the type of {name!r}")
        entries.append(_Entry(name, dimensions, ggml_type, cursor.u64(f"the offset of {name!r}")))
    return entries


def _place_tensors(cursor: _Cursor, entries: list[_Entry], data_begin: int, alignment: int) -> dict[str, GgufTensor]:
    types: dict[int, tuple[str, tuple[int, int] | None]] = {
        number: (name, BLOCK_SIZES[name]) for number, name in GGML_TYPE_NAMES.items()
    }
    tensors = {}
    for entry in entries:
        if entry.ggml_type not in types:
            types[entry.ggml_type] = convertible_type(entry.ggml_type)
        qtype, block = types[entry.ggml_type]
        if block is None:
            raise CheckpointError(cursor.file, f"has the unsupported type {qtype}", tensor=entry.name)
        tensors[entry.name] = _place_tensor(cursor, entry, qtype, block, data_begin, alignment)
    in_order = sorted(tensors.values(), key=lambda tensor: tensor.offset)
    for before, after in itertools.pairwise(in_order):
        if before.offset + before.num_bytes > after.offset:
            raise CheckpointError(cursor.file, f"shares bytes with {before.name!r}", tensor=after.name)
    return tensors


def _place_tensor(
    cursor: _Cursor, entry: _Entry, qtype: str, block: tuple[int, int], data_begin: int, alignment: int
) -> GgufTensor:
    values_per_block, block_bytes = block
    row_length = entry.dimensions[0]
    if 0 in entry.dimensions:
        raise CheckpointError(cursor.file, "has an empty dimension", tensor=entry.name)
    if row_length % values_per_block:
        reason = f"has rows of {row_length} values, not a multiple of {qtype}'s block of {values_per_block}"
        raise CheckpointError(cursor.file, reason, tensor=entry.name)
    num_bytes = row_length // values_per_block * block_bytes
    for dimension in entry.dimensions[1:]:
        num_bytes *= dimension
    if entry.offset % alignment:
        raise CheckpointError(cursor.file, f"has an offset that is not a multiple of {alignment}", tensor=entry.name)
    begin = data_begin + entry.offset
    if begin + num_bytes > cursor.size:
        raise CheckpointError(
            cursor.file,
            f"is truncated or corrupt: bytes {begin} to {begin + num_bytes} lie beyond the end of the file "
            f"({cursor.size} bytes)",
            tensor=entry.name,
        )
    return GgufTensor(entry.name, qtype, tuple(reversed(entry.dimensions)), begin, num_bytes)
