"""What callers pass as ids, indexes and memory, as plain C arrays.

Neither numpy nor torch is imported: arrays are known by the buffer protocol, tensors by their
methods.
"""

from __future__ import annotations

import array
from collections.abc import Sequence
from typing import Any

from ucm._abi import ffi
from ucm._ids import joined
from ucm.errors import InvalidError, UnsupportedError
from ucm.layout import Layout

ID_BYTES = 16
# Known by their names, they would be looked up at every call.
_BYTES, _WORDS, _LONGS = map(ffi.typeof, ("uint8_t[]", "uint32_t[]", "uint64_t[]"))

_TORCH_DTYPES = {
    "torch.bfloat16": "bf16",
    "torch.float16": "fp16",
    "torch.float32": "fp32",
    "torch.float8_e4m3fn": "fp8_e4m3",
    "torch.float8_e5m2": "fp8_e5m2",
}


def _view(what: str, data: Any, wanted: str) -> memoryview:
    try:
        view = memoryview(data)
    except TypeError:
        raise InvalidError(f"{what}: {wanted}, not {_kind(data)}") from None
    if not view.c_contiguous:
        raise InvalidError(f"{what}: the array is not contiguous; pass a contiguous copy")
    return view


def ids(block_ids: Any) -> tuple[Any, int]:
    """Return (C array of n * 16 bytes, n) of list[bytes] or a uint8 array (n, 16)."""
    wanted = "a list of 16-byte ids or a uint8 array (n, 16) is needed"
    if not isinstance(block_ids, (list, tuple)):
        if isinstance(block_ids, (bytes, bytearray)):
            raise InvalidError(f"block_ids: {wanted}, not {_kind(block_ids)}")
        view = _view("block_ids", block_ids, wanted)
        if view.format != "B" or view.ndim != 2 or view.shape[1] != ID_BYTES:  # type: ignore[index]
            shape = tuple(view.shape or ())
            raise InvalidError(
                f"block_ids: an array must be uint8 of shape (n, 16), not {view.format!r} {shape}"
            )
        return ffi.from_buffer(_BYTES, block_ids), len(view)
    data = joined(block_ids)
    return ffi.from_buffer(_BYTES, _join(block_ids) if data is None else data), len(block_ids)


def _join(block_ids: Sequence[Any]) -> bytes:
    """Join ids of other types, such as bytearray, too; say what is wrong with one that is none."""
    try:
        data = b"".join(block_ids)
    except TypeError:
        bad = next(i for i in block_ids if not isinstance(i, (bytes, bytearray, memoryview)))
        raise InvalidError(f"block_ids: an id is 16 bytes, not {_kind(bad)}") from None
    if block_ids and set(map(len, block_ids)) != {ID_BYTES}:
        bad = next(i for i in block_ids if len(i) != ID_BYTES)
        raise InvalidError(f"block_ids: an id is 16 bytes, but {bad!r} has {len(bad)}")
    return data


def _kind(value: Any) -> str:
    return type(value).__name__


def shard_indexes(shard_index: Any, n: int, shards_per_block: int) -> Any:
    """Return a C array of uint32 of any sequence of integers.

    The native side checks that they are in range, see ``check_range``.
    """
    if getattr(shard_index, "ndim", None) == 1 and hasattr(shard_index, "astype"):
        result = ffi.from_buffer(_WORDS, _uint32(shard_index, shards_per_block))
    else:
        try:
            values = array.array("I", shard_index)
        except OverflowError:
            check_range(next(v for v in shard_index if not 0 <= v < 2**32), shards_per_block)
            raise
        except TypeError:
            raise InvalidError(f"shard_index: integers are needed, not {shard_index!r}") from None
        result = ffi.from_buffer(_WORDS, values)
    if len(result) != n:
        raise InvalidError(f"shard_index: {len(result)} indexes for {n} block ids; give one each")
    return result


def depths(given: Any, n: int) -> Any:
    """Return a C array of uint32, or NULL for None: the place of each row's block in its prefix."""
    if given is None:
        return ffi.NULL
    try:
        values = given if _words(given) else array.array("I", given)
    except (TypeError, OverflowError, ValueError):
        raise InvalidError(f"depths: integers from 0 on are needed, not {given!r}") from None
    if len(values) != n:
        raise InvalidError(f"depths: {len(values)} for {n} block ids; give one each")
    return ffi.from_buffer(_WORDS, values)


def _words(values: Any) -> bool:
    """Tell whether it is an array that can be taken as it lies."""
    dtype = getattr(values, "dtype", None)
    return getattr(dtype, "str", "") == "<u4" and values.ndim == 1 and values.flags.c_contiguous


def _uint32(values: Any, shards_per_block: int) -> Any:
    if _words(values):
        return values
    if values.dtype.kind not in "iu":
        raise InvalidError(f"shard_index: integers are needed, not {values.dtype}")
    if len(values):
        check_range(min(0, int(values.min())) or int(values.max()), shards_per_block)
    return values.astype("u4")


def check_range(index: int, shards_per_block: int) -> None:
    """Refuse an index that no shard has."""
    if not 0 <= index < shards_per_block:
        raise InvalidError(
            f"shard_index: {index} is out of range; a block has {shards_per_block} shards "
            f"(0 to {shards_per_block - 1})"
        )


def addresses(rows: Any, n: int, n_segments: int) -> Any:
    """Return a C array of n * n_segments addresses of a uint64 array (n, m) or lists of ints."""
    if not isinstance(rows, (list, tuple)):
        view = _view("addresses", rows, "a uint64 array or a list of rows is needed")
        shape = tuple(view.shape or ())
        if view.format not in ("L", "Q") or shape != (n, n_segments):
            raise InvalidError(
                f"addresses: an array must be uint64 of shape ({n}, {n_segments}), "
                f"not {view.format!r} {shape}"
            )
        return ffi.from_buffer(_LONGS, rows)
    flat = array.array("Q")
    _check_rows("addresses", rows, n)
    for row in rows:
        row = [row] if isinstance(row, int) else row
        _check_row("addresses", row, n_segments)
        try:
            flat.extend(row)
        except (TypeError, OverflowError):
            raise InvalidError(f"addresses: an address is a positive integer, not {row}") from None
    return ffi.from_buffer(_LONGS, flat)


def _check_rows(what: str, rows: Any, n: int) -> None:
    if not isinstance(rows, Sequence):
        raise InvalidError(f"{what}: a list of rows is needed, not {_kind(rows)}")
    if len(rows) != n:
        raise InvalidError(f"{what}: {len(rows)} rows for {n} block ids; give one row each")


def _check_row(what: str, row: Any, n_segments: int) -> None:
    if len(row) != n_segments:
        raise InvalidError(f"{what}: a row of {len(row)}, but a shard has {n_segments} segments")


def check_event(event: Any, can_wait: bool) -> None:
    """Refuse what is no handle of an event, and any where nothing can wait for one."""
    if isinstance(event, bool) or not isinstance(event, int) or not 0 <= event < 2**64:
        raise InvalidError(
            f"prerequisite_handle: the handle of an event is needed, or 0, not {event!r}; "
            "torch's is event.cuda_event"
        )
    if event and not can_wait:
        raise UnsupportedError(
            "prerequisite_handle: no layer of this pipeline can wait for a device event; it takes "
            "memory: cuda and a layer for that on top"
        )


def tensors(rows: Any, n: int, layout: Layout, writable: bool) -> tuple[Any, Any]:
    """Return (C array of addresses, what must stay alive) of rows of tensors, one a segment."""
    flat = array.array("Q")
    sizes = layout.segment_sizes
    _check_rows("tensors", rows, n)
    for row in rows:
        if not isinstance(row, (list, tuple)):
            row = [row]
        _check_row("tensors", row, len(sizes))
        for tensor, size in zip(row, sizes, strict=True):
            flat.append(_address(tensor, size, layout, writable))
    return ffi.from_buffer(_LONGS, flat), rows


def _address(tensor: Any, size: int, layout: Layout, writable: bool) -> int:
    where = "cpu" if layout.memory == "host" else f"{layout.memory}:{layout.device}"
    address, nbytes = extent(tensor, layout.dtype, writable, where)
    if nbytes != size:
        raise InvalidError(f"tensors: a tensor has {nbytes} bytes, but its segment has {size}")
    return address


def extent(tensor: Any, dtype: str, writable: bool, where: str = "cpu") -> tuple[int, int]:
    """Return (address, bytes) of a contiguous tensor or array that lies ``where``."""
    address: int
    if hasattr(tensor, "data_ptr"):
        if not tensor.is_contiguous():
            raise InvalidError("tensors: a tensor is not contiguous; pass tensor.contiguous()")
        if (tensor.device.type if where == "cpu" else str(tensor.device)) != where:
            raise InvalidError(
                f"tensors: a tensor is on {tensor.device}, but this pipeline takes {where}; "
                "'memory' and 'device_id' say which"
            )
        known = _TORCH_DTYPES.get(str(tensor.dtype))
        nbytes, address = tensor.numel() * tensor.element_size(), tensor.data_ptr()
    else:
        try:
            view = memoryview(tensor)
        except (TypeError, ValueError):
            raise InvalidError(
                f"tensors: {_kind(tensor)} is neither a torch tensor nor an array"
            ) from None
        if where != "cpu":
            raise InvalidError(
                f"tensors: an array is in host memory, but this pipeline takes {where}"
            )
        if not view.c_contiguous:
            raise InvalidError("tensors: an array is not contiguous (strides); pass a copy")
        if writable and view.readonly:
            raise InvalidError("tensors: an array to load into is read-only")
        known = {"e": "fp16", "f": "fp32"}.get(view.format)
        nbytes = view.nbytes
        address = int(ffi.cast("uintptr_t", ffi.from_buffer(tensor))) if nbytes else 0
    if known is not None and dtype != "bytes" and known != dtype:
        raise InvalidError(f"tensors: a tensor is {known}, but the pipeline was opened for {dtype}")
    return address, nbytes


def lengths(values: Any, n: int, capacity: int) -> Any:
    """Return a C array of uint64 lengths, or NULL for None."""
    if values is None:
        return ffi.NULL
    try:
        flat = array.array("Q", (int(v) for v in values))
    except (TypeError, ValueError, OverflowError):
        raise InvalidError("lengths: whole numbers of bytes are needed") from None
    if len(flat) != n:
        raise InvalidError(f"lengths: {len(flat)} lengths for {n} block ids; give one each")
    if flat and max(flat) > capacity:
        raise InvalidError(f"lengths: {max(flat)} is above the shard's {capacity} bytes")
    return ffi.from_buffer(_LONGS, flat)
