"""Reads the header of a safetensors file without trusting a byte of it. What the tensors mean is not known here.

The layout: 8 bytes of header length, a JSON object of {name: {dtype, shape, data_offsets}}, then the data. bfloat16
has no NumPy type, so the data is handed out as bytes; reading the small header ourselves is what makes that possible.
"""

from __future__ import annotations

import json
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tampu.core.errors import CheckpointError

_MAX_HEADER_BYTES = 1 << 25  # enough for some 200,000 tensors
_QTYPES = {"F32": ("F32", 4), "F16": ("F16", 2), "BF16": ("BF16", 2)}
_MAX_DIMENSIONS = 8


@dataclass(frozen=True, slots=True)
class SafetensorsEntry:
    """Where a tensor lies in its file."""

    qtype: str  # F32, F16 or BF16
    shape: tuple[int, ...]
    offset: int  # from the start of the file
    num_bytes: int


def read_safetensors_header(
    path: Path, data: mmap.mmap, *, ignored_suffixes: tuple[str, ...] = ()
) -> dict[str, SafetensorsEntry]:
    """Parse and check: every tensor lies inside the file and shares no byte with another. Raises CheckpointError.

    Tensors whose names end in one of `ignored_suffixes` are passed over unread, whatever their type.
    """
    size = len(data)
    header_bytes = int.from_bytes(data[:8], "little")
    if size < 8 or header_bytes > min(size - 8, _MAX_HEADER_BYTES):
        raise CheckpointError(
            str(path), f"is truncated or not safetensors: a header of {header_bytes} bytes in a file of {size}"
        )
    data_begin = 8 + header_bytes
    header = parse_json(str(path), data[8:data_begin], "the header")
    header.pop("__metadata__", None)
    entries = {
        name: _read_entry(str(path), name, entry, data_begin, size)
        for name, entry in header.items()
        if not name.endswith(ignored_suffixes)
    }
    end, last = data_begin, ""
    for name, entry in sorted(entries.items(), key=lambda item: item[1].offset):
        if entry.offset < end:
            raise CheckpointError(str(path), f"shares bytes with {last!r}", tensor=name)
        end, last = entry.offset + entry.num_bytes, name
    return entries


def parse_json(file: str, raw: bytes, what: str) -> dict[str, Any]:
    """A JSON object without repeated keys. Raises CheckpointError, whatever is wrong with the text."""
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError, JSONDecodeError and over-long numbers too
        raise CheckpointError(file, f"{what} is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(file, f"{what} must be a JSON object")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} appears twice")
    return value


def _read_entry(file: str, name: str, entry: Any, data_begin: int, size: int) -> SafetensorsEntry:
    def fail(reason: str) -> CheckpointError:
        return CheckpointError(file, reason, tensor=name)

    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise fail("its entry must have dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in _QTYPES:
        raise fail(f"has the unsupported type {str(entry['dtype'])[:40]!r}; F32, F16 and BF16 can be read")
    if not _is_sizes(shape) or len(shape) > _MAX_DIMENSIONS or 0 in shape:
        raise fail("has a malformed shape")
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise fail("has malformed data_offsets")
    qtype, num_bytes = _QTYPES[entry["dtype"]]
    for dimension in shape:
        num_bytes *= dimension
    begin, end = offsets
    if end - begin != num_bytes:
        raise fail(f"has shape {tuple(shape)}, which needs {num_bytes} bytes, but data_offsets span {end - begin}")
    if data_begin + end > size:
        raise fail(f"is truncated: bytes to {data_begin + end} lie beyond the end of the file ({size} bytes)")
    return SafetensorsEntry(qtype, tuple(shape), data_begin + begin, num_bytes)


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)
