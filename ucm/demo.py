"""Real KV cache through a pipeline, into files, and back in another process, bit for bit."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ucm

SAMPLE = Path(__file__).with_name("data") / "smollm2_bf16_argparse_b16.bin"
BLOCK_BYTES = 368_640
PLANE_BYTES = 6_144  # K or V of one layer of one block
CACHE_GB = 0.0625

# The child looks for modules where this process does, whatever directory either was started in.
_CHILD = """\
import sys
sys.path[:] = sys.argv[1].split(":")
from ucm.demo import second_process
sys.exit(second_process())
"""


def sample_ids(data: bytes) -> list[bytes]:
    """Name every block after its bytes and all before them, as an engine names a prefix."""
    ids: list[bytes] = []
    previous = b""
    for start in range(0, len(data), BLOCK_BYTES):
        block = data[start : start + BLOCK_BYTES]
        previous = hashlib.blake2b(previous + block, digest_size=16).digest()
        ids.append(previous)
    return ids


def planes(data: memoryview) -> list[list[memoryview]]:
    """Cut memory into one row a block, one segment a plane."""
    return [
        [data[at : at + PLANE_BYTES] for at in range(start, start + BLOCK_BYTES, PLANE_BYTES)]
        for start in range(0, len(data), BLOCK_BYTES)
    ]


def taken(pipeline: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Keep those defaults that some layer of the pipeline takes."""
    from ucm.pipeline import parse
    from ucm.registry import kind_of, registry

    tables = [kind_of(registry().find(word)).options for word in parse(pipeline)]
    if None in tables:
        return dict(defaults)
    known = {option.name for table in tables for option in table or ()}
    return {key: value for key, value in defaults.items() if key in known}


def _open(pipeline: str, options: Mapping[str, Any]) -> ucm.Store:
    store = ucm.open_pipeline(
        pipeline,
        **{"block_size": BLOCK_BYTES, "tensor_size": PLANE_BYTES, "dtype": "bf16", **options},
    )
    if not {"keeps", "loads", "persistent"} <= store.capabilities:
        store.close()
        raise ucm.ConfigError(
            f"store_pipeline: what {pipeline!r} is given does not come back in another process; "
            "end it with a store that keeps blocks, such as Posix"
        )
    return store


def _dump(pipeline: str, options: Mapping[str, Any], data: bytes) -> dict[str, Any]:
    ids = sample_ids(data)
    with _open(pipeline, options) as store:
        known = sum(store.lookup(ids))
        start = time.perf_counter()
        store.wait(store.dump(ids, [0] * len(ids), planes(memoryview(data))))
        report = store.drain()
        seconds = time.perf_counter() - start
        if report.lost or report.pending or report.unfinished:
            raise ucm.StoreError(f"not everything was stored: {report}")
        return {
            "seconds": seconds,
            "known": known,
            "layers": list(store.layers),
            "stats": store.stats(),
        }


def _load(pipeline: str, options: Mapping[str, Any], data: bytes) -> dict[str, Any]:
    ids = sample_ids(data)
    with _open(pipeline, options) as store:
        last = store.lookup_on_prefix(ids)
        if last != len(ids) - 1:
            raise ucm.NotFoundError(f"only {last + 1} of {len(ids)} blocks are found again")
        memory = bytearray(len(data))
        start = time.perf_counter()
        store.wait(store.load(ids, [0] * len(ids), planes(memoryview(memory))))
        seconds = time.perf_counter() - start
        if memory != data:
            at = next(i for i, (a, b) in enumerate(zip(memory, data, strict=True)) if a != b)
            raise ucm.CorruptError(
                f"byte {at % BLOCK_BYTES} of block {at // BLOCK_BYTES} came back as "
                f"{memory[at]}, not {data[at]}"
            )
        return {"seconds": seconds, "stats": store.stats()}


def second_process() -> int:
    """Load and compare what another process dumped; the task is on stdin, the answer on stdout."""
    task = json.load(sys.stdin)
    answer: dict[str, Any]
    try:
        answer = _load(task["pipeline"], task["options"], SAMPLE.read_bytes())
    except Exception as error:  # the process that asked reports it
        answer = {"error": f"{type(error).__name__}: {error}"}
    json.dump(answer, sys.stdout)
    return 1 if "error" in answer else 0


def _load_elsewhere(pipeline: str, options: Mapping[str, Any]) -> dict[str, Any]:
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, ":".join(sys.path)],
        input=json.dumps({"pipeline": pipeline, "options": dict(options)}),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    try:
        answer: dict[str, Any] = json.loads(child.stdout)
    except ValueError:
        raise ucm.StoreError(
            f"the second process ended with code {child.returncode} and no answer"
        ) from None
    if "error" in answer:
        raise ucm.StoreError(f"in the second process: {answer['error']}")
    return answer


def _stored_bytes(directories: str, ids: list[bytes]) -> int:
    return sum(
        path.stat().st_size
        for directory in directories.split(":")
        for block_id in ids
        for path in Path(directory).glob(f"*/*/[0-9a-f]*/{block_id.hex()}")
    )


def _layers(dumped: Mapping[str, Any], loaded: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    layers = {}
    for name in dumped["layers"]:
        dump, load = dumped["stats"].get(name, {}), loaded["stats"].get(name, {})
        taken, passed = dump.get("dump_bytes_total", 0), dump.get("dump_out_bytes_total", 0)
        layers[name] = {
            "bytes_in": taken,
            "bytes_out": passed,
            "ratio": round(taken / passed, 4) if passed else None,
            "dump_ms": dump.get("dump_busy_ns_total", 0) / 1e6,
            "load_bytes_in": load.get("load_in_bytes_total", 0),
            "load_bytes_out": load.get("load_bytes_total", 0),
            "load_ms": load.get("load_busy_ns_total", 0) / 1e6,
        }
    return layers


@contextlib.contextmanager
def _directory(named: str | Path | None) -> Iterator[Path]:
    if named is None:
        with tempfile.TemporaryDirectory(prefix="ucm-demo-") as temporary:
            yield Path(temporary)
    else:
        Path(named).mkdir(parents=True, exist_ok=True)
        yield Path(named).resolve()


def run(
    pipeline: str = "Cache|Compress|Posix",
    directory: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Dump the sample, load and compare it in a second process, and say what each layer did.

    Without a directory the files go to a temporary one. Whatever is not as it was raises.
    """
    data = SAMPLE.read_bytes()
    ids = sample_ids(data)
    with _directory(directory) as place:
        defaults = {"storage_backends": str(place), "cache_buffer_capacity_gb": CACHE_GB}
        settings = {**taken(pipeline, defaults), **(options or {})}
        dumped = _dump(pipeline, settings, data)
        loaded = _load_elsewhere(pipeline, settings)
        layers = _layers(dumped, loaded)
        stored = _stored_bytes(str(settings.get("storage_backends", place)), ids)
    if not stored:  # the bottom layer keeps no files of ours: take its word
        stored = next(reversed(layers.values()))["bytes_out"]
    return {
        "pipeline": pipeline,
        "blocks": len(ids),
        "bytes": len(data),
        "stored_bytes": stored,
        "ratio": round(len(data) / stored, 4) if stored else None,
        "verified": True,
        "already_stored": dumped["known"],
        "dump_ms": dumped["seconds"] * 1e3,
        "load_ms": loaded["seconds"] * 1e3,
        "layers": layers,
    }
