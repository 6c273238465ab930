"""Option tables are the schema: check a configuration against the layers that will take it."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ucm import _secrets
from ucm.errors import ConfigError
from ucm.loader import TYPES, UNKNOWN, Option

DTYPES = ("bytes", "bf16", "fp16", "fp32", "fp8_e4m3", "fp8_e5m2")

# Keys of the host, legal for any pipeline string.
HOST_OPTIONS = (
    Option("store_pipeline", "string", None, None, None, "The layers, top first: 'Cache|Posix'."),
    Option("unique_id", "string", "", None, None, "Names what the processes of one engine share."),
    Option("device_id", "int", "0", "-1..", None, "-1 opens for lookup only; else see memory."),
    Option(
        "memory",
        "string",
        "host",
        "host|cuda",
        None,
        "Where the caller's memory is; cuda: on the CUDA device that device_id counts from 0.",
    ),
    Option("block_size", "size", "0", "0..", "bytes", "Bytes of one block."),
    Option("shard_size", "size", "0", "0..", "bytes", "Bytes of one shard; 0: the block."),
    Option("tensor_size", "size", "0", "0..", "bytes", "Bytes of one segment; 0: the shard."),
    Option("tensor_size_list", "ints", "", "1..", "bytes", "Bytes of each segment of a shard."),
    Option("dtype", "string", "bytes", "|".join(DTYPES), None, "What the numbers in a shard are."),
    Option("timeout_ms", "int", "30000", "1..", "ms", "Limit of wait, and of a shard's start."),
    Option("namespace", "string", "default", None, None, "Whose blocks: a tenant, team, purpose."),
    Option("model", "string", "", None, None, "The model whose KV cache it is."),
    Option(
        "fingerprint",
        "string",
        "",
        None,
        None,
        "All else that tells what the bytes mean, never the rank; default: dtype and sizes.",
    ),
)

# Host keys that name what stored blocks may share; layers that record it declare them too.
IDENTITY = ("namespace", "model", "fingerprint")
_IDENTITY_BYTES = {"model": 256, "fingerprint": 1024}

# Keys at the top level of a configuration file: what an engine's connector does with its store.
# A default of None: not set, which the help explains.
ENGINE_OPTIONS = (
    Option("enable_event_sync", "bool", "true", None, None, "Order device copies by events."),
    Option("use_layerwise", "bool", "true", None, None, "Move blocks layer by layer."),
    Option("hit_ratio", "float", None, "0..1", None, "Most of a prompt that may count as a hit."),
    Option("enable_record_traces", "bool", "false", None, None, "Log requests, for ucm replay."),
    Option("use_lite", "bool", "false", None, None, "Count hits only; the pipeline is then Fake."),
    Option(
        "persist_token_threshold",
        "int",
        "0",
        "0..",
        "tokens",
        "Requests with fewer tokens are neither loaded nor dumped.",
    ),
    Option("load_tokens_threshold", "int", "0", "0..", "tokens", "Smaller hits are not loaded."),
    Option("use_request_async_load", "bool", "false", None, None, "Load outside the batch."),
    Option(
        "kv_head_groups",
        "int",
        None,
        "1..",
        None,
        "Engines with the same number share blocks whatever their tensor parallelism is.",
    ),
    Option("use_async_save", "bool", "true", None, None, "Steps do not wait for what they save."),
    Option("enable_metrics", "bool", None, None, None, "Not set: on if a metrics key is given."),
    Option("metrics_config_path", "string", None, None, None, "A YAML file that selects metrics."),
    Option("metrics_config", "mapping", None, None, None, "The same, written in place."),
    Option(
        "use_consistency_manager", "bool", None, None, None, "Track blocks that some rank misses."
    ),
    Option("wa_dump_block_wise", "bool", "false", None, None, "Window attention: whole blocks."),
    Option(
        "hybrid_linear_attention_layerwise",
        "bool",
        "false",
        None,
        None,
        "Hybrid models: layer by layer.",
    ),
    Option(
        "use_inference_duration_monitor", "bool", "false", None, None, "Log each step's duration."
    ),
    Option("ucm_sparse_config", "mapping", None, None, None, "Sparse attention."),
)

# Those that nothing reads yet: accepted, and reported when they ask for something.
ENGINE_WITHOUT_EFFECT = {
    "enable_event_sync": "KV cache is taken from host memory, where there are no device events",
    "use_consistency_manager": "a hit already needs the blocks of every rank",
    "wa_dump_block_wise": "window attention has no layout of its own",
    "hybrid_linear_attention_layerwise": "blocks are loaded and dumped whole",
    "use_inference_duration_monitor": "no connector reads it",
    "ucm_sparse_config": "sparse attention is no part of this package",
}

# Knobs of older deployments that mean nothing here: accepted, and reported with the reason.
WITHOUT_EFFECT = {
    "local_rank_size": "ranks are found by their unique_id",
    "cache_stream_number": "copy streams are made as threads need them",
    "cache_io_aggregation": "Cache always writes and reads whole blocks where it can",
    "cache_load_exclusive_buffer_number": "dumps leave half of the memory to loads",
    "posix_lookup_concurrency": "a lookup runs on its caller's thread",
    "posix_open_concurrency": "files are opened by the threads that move their bytes",
    "posix_commit_concurrency": "blocks are published by the threads that wrote them",
    "data_dir_shard_bytes": "folders are always named by three hex digits",
    "compress_ratio": "Compress is lossless and of variable length; there is no ratio to set",
    "data_type": "dtype says what the numbers are",
    "layer_size": "the layout says it (shard_size, tensor_size)",
    "stream_number": "thread counts are set per layer (compress_concurrency)",
    "cache_sdma_direct": "host memory needs no copy engine",
    "cache_load_backend_only": "Cache looks into itself first",
    "gpu_kv_buffer_addrs": "memory is given with each load and dump",
    "gpu_kv_buffer_sizes": "memory is given with each load and dump",
    "ior_depth": "no request to 3FS waits until a batch is full",
    "store_health": "Cache finds out by itself when the store below it is down",
    "posix_gc_concurrency": "one thread of one process collects",
    "posix_gc_check_interval_sec": "the ledger says at once when there is something to collect",
    "posix_gc_max_recycle_count_per_shard": "posix_gc_recycle_percent alone says how much goes",
    "posix_gc_shard_sample_ratio": "everything is counted, nothing is estimated",
    "posix_gc_precise_mode": "everything is counted, nothing is estimated",
    "posix_gc_candidate_extra_percent": "everything is counted, nothing is estimated",
    "posix_gc_cross_instance_lock": "all writers of a directory always agree",
    "posix_gc_heartbeat_interval_sec": "the kernel says which writers live",
    "posix_gc_stale_threshold_sec": "the kernel says which writers live",
    "posix_gc_task_timeout_ms": "a round ends when enough is free",
}

# Knobs that ask for what is not built: refused unless they say no.
NOT_BUILT = {
    "use_gdr": "GPUDirect RDMA is not built",
}

_NAMESPACE = re.compile("[A-Za-z0-9._-]")
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?b?|b)?\s*", re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


@dataclasses.dataclass(frozen=True)
class Value:
    """A checked value; ``given`` tells a user's from a default."""

    option: Option
    value: Any
    given: bool

    def __repr__(self) -> str:
        shown = _secrets.SHOWN if self.option.hidden else repr(self.value)
        return f"<Value {self.option.name}={shown}>"


@dataclasses.dataclass
class Resolved:
    """A whole configuration, checked: values of the host, and of each layer in table order."""

    host: dict[str, Value]
    layers: list[list[Value]]
    notes: list[str]

    def get(self, name: str) -> Any:
        """Return the value of a host key."""
        return self.host[name].value


def parse_size(text: str) -> int:
    """Read '64GiB', '4K' or '4096'; units are powers of 1024."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError(text)
    unit = (match[2] or "").lower()
    return int(float(match[1]) * _UNITS[unit[:1]])


def _parse_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise ValueError(value)


def _parse_int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(value)
    return int(value)


def _parse_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(value)
    number = float(value)
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError(value)
    return number


def _parse_gib(value: Any) -> float:
    if isinstance(value, str) and value.strip()[-1:].isalpha():
        return parse_size(value) / 2**30
    return _parse_float(value)


def _parse_string(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(value)
    return value


def _parse_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return _parse_string(str(value) if isinstance(value, (int, float)) else value)


def _parse_mapping(value: Any) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(value)
    return dict(value)


def _parse_list(value: Any, separator: str) -> list[Any]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(separator) if part.strip()]
    if isinstance(value, Sequence):
        return list(value)
    raise ValueError(value)


_PARSERS = {
    "bool": (_parse_bool, "true or false"),
    "int": (_parse_int, "a whole number"),
    "size": (
        lambda v: parse_size(v) if isinstance(v, str) else _parse_int(v),
        "a number of bytes, or text like '64GiB'",
    ),
    "float": (_parse_float, "a number"),
    "string": (_parse_string, "text"),
    "secret": (_parse_string, "text"),
    UNKNOWN: (_parse_text, "text"),
    "strings": (
        lambda v: [_parse_string(part) for part in _parse_list(v, ":")],
        "a list, or text separated by ':'",
    ),
    "ints": (
        lambda v: [_parse_int(part) for part in _parse_list(v, ",")],
        "a list of whole numbers",
    ),
    "mapping": (_parse_mapping, "a mapping"),
}


def check_value(option: Option, value: Any, key: str | None = None) -> Any:
    """Return the value in the option's type, or raise ConfigError that names key and remedy."""
    key = key or option.name
    shown = _secrets.SHOWN if option.hidden else repr(value)
    parse, expected = _PARSERS[option.type]
    if option.type == "float" and option.unit == "GiB":
        parse, expected = _parse_gib, "a number of GiB, or text like '64GiB'"
    try:
        parsed = parse(value)
        if option.hidden:
            _secrets.keep(str(parsed))
    except (ValueError, OverflowError):
        if option.type == "string" and isinstance(value, (int, float)):
            expected += "; write it in quotes"
        raise ConfigError(f"{key}: {shown} is not {expected}") from None
    for part in parsed if isinstance(parsed, list) else [parsed]:
        if isinstance(part, int) and not -(2**63) <= part < 2**63:
            raise ConfigError(f"{key}: {shown} is too large")
        if not _allowed(option, part):
            unit = f" {option.unit}" if option.unit else ""
            raise ConfigError(f"{key}: {shown} is not allowed; it must be {_range(option)}{unit}")
    return parsed


def _check_identity(host: Mapping[str, Value]) -> None:
    name = host["namespace"].value
    strange = next((c for c in name if not _NAMESPACE.fullmatch(c)), None)
    if strange is not None or name[:1] in ("", ".", "-") or len(name) > 64:
        slug = re.sub("[^A-Za-z0-9._-]+", "-", name).lstrip(".-")[:64] or "default"
        problem = "it has 1 to 64 characters and begins with no '.' or '-'"
        if strange is not None:
            problem = f"{strange!r} cannot be in it, only letters, digits, '.', '_' and '-'"
        raise ConfigError(f"namespace: {name!r} is not allowed: {problem}; {slug!r} would do")
    for key, limit in _IDENTITY_BYTES.items():
        value = host[key].value
        size = len(value.encode(errors="replace"))
        if size > limit:
            raise ConfigError(f"{key}: {size} bytes of UTF-8 are too long; at most {limit}")
        for c in value:
            if unicodedata.category(c) in ("Cc", "Cs"):
                raise ConfigError(f"{key}: {value!r} is not allowed: {c!r} is no printable text")


def _bounds(option: Option) -> tuple[float, float] | None:
    if option.allowed is None or option.type not in ("int", "size", "float", "ints"):
        return None
    low, _, high = option.allowed.partition("..")
    return (float(low) if low else float("-inf"), float(high) if high else float("inf"))


def _allowed(option: Option, part: Any) -> bool:
    if option.allowed is None:
        return True
    bounds = _bounds(option)
    if bounds is not None:
        return bool(bounds[0] <= part <= bounds[1])
    return part in option.allowed.split("|")


def _range(option: Option) -> str:
    if _bounds(option) is None:
        return "one of " + ", ".join((option.allowed or "").split("|"))
    low, _, high = (option.allowed or "").partition("..")
    if not high:
        return f"{low} or more"
    return f"from {low} to {high}" if low else f"{high} or less"


def tables_file() -> Path:
    """Find the option tables of the shipped layers, written when the package was built."""
    from importlib import resources

    # In an editable install only files can be resolved, not folders.
    return Path(str(resources.files("ucm") / "plugins" / "tables.json"))


@functools.cache
def shipped_tables() -> dict[str, tuple[Option, ...]]:
    """Read the options of all shipped layers, without opening a library."""
    try:
        tables = json.loads(tables_file().read_text())
    except FileNotFoundError:
        return {}
    return {
        layer: tuple(
            Option(o["name"], TYPES[o["type"]], o["initial"], o["allowed"], o["unit"], o["help"])
            for o in options
        )
        for layer, options in tables.items()
    }


def flatten(config: Mapping[str, Any], words: Iterable[str] | None = None) -> dict[str, Any]:
    """Turn {'Posix': {'timeout_ms': 5}} into {'Posix.timeout_ms': 5}.

    Where ``words`` are given, no others than these and our layers may hold a mapping.
    """
    flat: dict[str, Any] = {}
    known = set(words or ()) | set(shipped_tables())
    for key, value in config.items():
        if not isinstance(key, str):
            raise ConfigError(f"{key!r}: a key must be text")
        if isinstance(value, Mapping) and key not in WITHOUT_EFFECT:
            if words is not None and key not in known:
                raise _unknown(key, known)
            flat.update({f"{key}.{name}": part for name, part in value.items()})
        else:
            flat[key] = value
    return flat


ELSEWHERE = "at the top level, beside ucm_connectors"


def _unknown(key: str, known: Iterable[str]) -> ConfigError:
    engine = {option.name for option in ENGINE_OPTIONS}
    if key in engine:
        return ConfigError(f"{key}: is no option of a store; it belongs {ELSEWHERE}")
    if key in shipped_tables():
        return ConfigError(f"{key}: needs a mapping of this layer's options, or {key}.OPTION")
    near = difflib.get_close_matches(key, sorted(engine.union(known)), 1, 0.6)
    hint = f"did you mean {near[0]!r}?" if near else "'ucm plugins NAME' lists a layer's options"
    if near and near[0] in engine:
        hint = f"did you mean {near[0]!r}, which belongs {ELSEWHERE}?"
    return ConfigError(f"{key}: unknown option; {hint}")


def resolve(
    config: Mapping[str, Any], layers: Sequence[tuple[str, tuple[Option, ...] | None]]
) -> Resolved:
    """Check ``config`` for the layers (word, option table), top first.

    A layer whose table is None (a Python store) takes whatever nobody else knows.
    """
    words = [word.rpartition(":")[2] for word, _ in layers]
    flat = flatten(config, words)
    open_ended = [word for word, table in layers if table is None]
    notes: list[str] = []
    used: set[str] = set()

    host = {}
    for option in HOST_OPTIONS:
        given = option.name in flat and flat[option.name] is not None
        used.add(option.name)
        value = check_value(option, flat[option.name] if given else option.initial or "")
        host[option.name] = Value(option, value, given)
    _check_identity(host)

    resolved: list[list[Value]] = []
    missing: list[str] = []
    for word, (_, table) in zip(words, layers, strict=True):
        values: list[Value] = []
        for option in table or ():
            own, bare = f"{word}.{option.name}", option.name
            key = own if own in flat else bare
            used.update(k for k in (own, bare) if k in flat)
            given = flat.get(key) is not None
            if not given and option.initial is None:
                missing.append(f"{option.name}: {word} needs it and it is not given. {option.help}")
                continue
            raw = flat[key] if given else option.initial
            checked = check_value(option, raw, key if given else None)
            if option.initial is None and checked in ("", []):
                missing.append(f"{key}: {word} needs it and it is empty. {option.help}")
            values.append(Value(option, checked, given))
        resolved.append(values)

    for values in resolved:
        notes += _without_a_limit(values)
    taken = {o.name for _, table in layers for o in table or ()}
    for key in flat:
        if key not in used:
            _leftover(key, flat[key], words, taken, bool(open_ended), notes)
        elif key in IDENTITY and key not in taken and not open_ended and host[key].given:
            notes.append(f"{key}: no effect, because no layer of {'|'.join(words)} records it")
    if missing:  # after the keys that nobody knows: one of them may be this one, misspelt
        raise ConfigError(missing[0])
    return Resolved(host, resolved, notes)


def _without_a_limit(values: Sequence[Value]) -> list[str]:
    """Report what is given for a limit that is not: options of a layer, by the name of its own."""
    limit = next((v for v in values if v.option.name.endswith("_capacity_gb")), None)
    if limit is None or limit.value:
        return []
    prefix = limit.option.name.removesuffix("capacity_gb") + "gc_"
    return [
        f"{v.option.name}: no effect, because {limit.option.name} sets no limit"
        for v in values
        if v.given and v.option.name.startswith(prefix)
    ]


def resolve_each(
    config: Mapping[str, Any],
    layers: Sequence[tuple[str, tuple[Option, ...] | None, Mapping[str, Any]]],
) -> Resolved:
    """Check layers (word, option table, own options), top first, that share no options.

    Host keys are those of the top layer, else of ``config``; what a layer takes of those it has
    itself or gets from ``config``. A layer's own options may be a whole
    configuration: what belongs to the others is not looked at.
    """
    host_keys = {option.name for option in HOST_OPTIONS}
    words = {word.rpartition(":")[2] for word, _, _ in layers}
    taken = {option.name for _, table, _ in layers for option in table or ()}
    parts: list[Resolved] = []
    for word, table, own in layers:
        mine = {option.name for option in table or ()}
        others = (taken - mine) | (words - {word.rpartition(":")[2]})
        if parts:
            others |= host_keys - mine
        given = {key: config[key] for key in host_keys - others if key in config}
        given.update({k: v for k, v in own.items() if k.partition(".")[0] not in others})
        parts.append(resolve(given, [(word, table)]))
    notes = dict.fromkeys(note for part in parts for note in part.notes)
    return Resolved(parts[0].host, [part.layers[0] for part in parts], list(notes))


def _leftover(
    key: str, value: Any, words: Sequence[str], taken: set[str], open_ended: bool, notes: list[str]
) -> None:
    """Deal with a key that no layer of the string takes: report it or refuse it."""
    word = key.rpartition(".")[0]
    tables = shipped_tables()
    if word:
        if word not in tables and word not in words:
            raise _unknown(word, [*words, *tables])
        if word in words and not open_ended:
            raise _unknown(key, [f"{word}.{n}" for n in taken])
        notes.append(f"{key}: not used, {word} is not in the pipeline")
        return
    if key in NOT_BUILT:
        if value in (False, 0, None, "false", "0"):
            notes.append(f"{key}: no effect, because {NOT_BUILT[key]}")
            return
        raise ConfigError(f"{key}: {value!r} cannot be had: {NOT_BUILT[key]}; leave the key out")
    if key in WITHOUT_EFFECT:
        notes.append(f"{key}: no effect, because {WITHOUT_EFFECT[key]}")
        return
    owners = [layer for layer, table in tables.items() if any(o.name == key for o in table)]
    if owners:
        notes.append(f"{key}: not used, {' and '.join(owners)} is not in the pipeline")
        return
    if not open_ended:
        raise _unknown(key, known_names() | taken)


def known_names() -> set[str]:
    """Name every key that a store of this package takes, or knows and does without."""
    names = {o.name for o in HOST_OPTIONS} | set(WITHOUT_EFFECT) | set(NOT_BUILT)
    return names | {o.name for table in shipped_tables().values() for o in table}
