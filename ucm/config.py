"""The whole configuration of an engine's KV cache, as YAML or as a mapping, checked as one."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from typing import Any

from ucm import options
from ucm.errors import ConfigError
from ucm.options import ENGINE_OPTIONS, ENGINE_WITHOUT_EFFECT, Value

FILE_KEY = "UCM_CONFIG_FILE"  # a key beside the others, or an environment variable
PIPELINE_STORE = "UcmPipelineStore"
SIZES = ("block_size", "shard_size", "tensor_size", "tensor_size_list")
OLDER_STORES = ("UcmNfsStore", "UcmPCStore", "UcmPcStore")

_CONNECTORS = "ucm_connectors"
_CONNECTOR_KEYS = ("ucm_connector_name", "ucm_connector_module_path", "ucm_connector_config")
INSIDE = f"{_CONNECTORS}[0].ucm_connector_config"
_EXAMPLE = (
    f"write {_CONNECTORS} with one entry: ucm_connector_name: {PIPELINE_STORE}, and "
    "ucm_connector_config: the store's options"
)


@dataclasses.dataclass(frozen=True)
class Config:
    """A checked configuration: which store, its options, and what the engine's connector does.

    ``options.ENGINE_OPTIONS`` explains the latter and has the defaults; None: not set.
    """

    source: str  # the file, or what the mapping is called
    connector_name: str
    connector_module_path: str | None
    connector_config: dict[str, Any] = dataclasses.field(repr=False)  # may hold secrets
    notes: list[str]  # what was given and has no effect, and why
    values: dict[str, Value] = dataclasses.field(repr=False)  # those below, with their tables
    enable_event_sync: bool
    use_layerwise: bool
    hit_ratio: float | None
    enable_record_traces: bool
    use_lite: bool
    persist_token_threshold: int
    load_tokens_threshold: int
    use_request_async_load: bool
    use_async_save: bool
    kv_head_groups: int | None
    enable_metrics: bool | None
    metrics_config_path: str | None
    metrics_config: dict[str, Any] | None
    use_consistency_manager: bool | None
    wa_dump_block_wise: bool
    hybrid_linear_attention_layerwise: bool
    use_inference_duration_monitor: bool
    ucm_sparse_config: dict[str, Any] | None


def load(extra_config: Mapping[str, Any], source: str = "kv_connector_extra_config") -> Config:
    """Check an engine's extra configuration.

    It is the whole configuration, or names a file with UCM_CONFIG_FILE; keys beside that win over
    the file's. Where neither is, the environment variable UCM_CONFIG_FILE names the file.
    """
    given = dict(extra_config)
    path = given.pop(FILE_KEY, None)
    if path is None and _CONNECTORS not in given:
        path = os.environ.get(FILE_KEY) or None
    if path is None:
        return _checked(given, source)
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise ConfigError(f"{source}: {FILE_KEY}: {path!r} is not the path of a file")
    _known_at_the_top(given, source)
    try:
        data = read_file(path)
    except ConfigError as error:
        raise ConfigError(f"{error}; correct it, or {FILE_KEY}, which names it") from None
    return _checked({**data, **given}, os.fspath(path))


def load_file(path: str | os.PathLike[str]) -> Config:
    """Check the configuration in a YAML file."""
    return _checked(read_file(path), os.fspath(path))


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a store's options from YAML: a whole configuration, or the options alone."""
    data = read_file(path)
    if _CONNECTORS not in data:
        return data
    config = _model(data, os.fspath(path))
    if config.connector_name != PIPELINE_STORE or config.connector_module_path:
        raise ConfigError(
            f"{path}: ucm_connector_name: {config.connector_name} is no pipeline; "
            f"open_pipeline opens a {PIPELINE_STORE}"
        )
    return config.connector_config


def read_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a YAML file that holds a mapping, in which no key stands twice."""
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            data = yaml.load(file, _loader())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not YAML: it is not UTF-8 ({error.reason})") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        why = ": ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{path}: {where}is not YAML: {why}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a mapping of options is needed at the top")
    return data


def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Refuses a key that stands twice, of which the last would win silently."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    continue
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands twice", key.start_mark
                    )
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    return Loader


def _checked(data: Mapping[str, Any], source: str) -> Config:
    from ucm.integration.vllm import metrics

    config = _model(data, source)
    notes = [*config.notes, *_check_store(config)]
    _contradictions(config)
    selection = metrics.select(config)
    notes += selection.notes if selection is not None else ()
    return dataclasses.replace(config, notes=notes)


def _model(data: Mapping[str, Any], source: str) -> Config:
    """Check all but the store's own options."""
    _known_at_the_top(data, source)
    name, module, store = _connector(data, source)
    values, notes = {}, []
    for option in ENGINE_OPTIONS:
        raw = data.get(option.name)
        given = raw is not None
        if not given:
            raw = option.initial
        try:
            value = None if raw is None else options.check_value(option, raw)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None
        values[option.name] = Value(option, value, given)
        if given and value and option.name in ENGINE_WITHOUT_EFFECT:
            reason = ENGINE_WITHOUT_EFFECT[option.name]
            notes.append(f"{option.name}: no effect yet, because {reason}")
    plain: dict[str, Any] = {key: value.value for key, value in values.items()}
    return Config(source, name, module, store, notes, values, **plain)


def _known_at_the_top(data: Mapping[str, Any], source: str) -> None:
    own = {_CONNECTORS, *(option.name for option in ENGINE_OPTIONS)}
    for key in data:
        if key in own:
            continue
        if key == FILE_KEY:
            raise ConfigError(f"{source}: {key}: a file cannot name another; leave the key out")
        if key in _CONNECTOR_KEYS:
            raise ConfigError(f"{source}: {key}: it belongs into the entry of {_CONNECTORS}")
        inside = options.known_names()
        if key in inside or key in options.shipped_tables():
            raise ConfigError(f"{source}: {key}: it is an option of a store; move it to {INSIDE}")
        near = difflib.get_close_matches(str(key), sorted(own | inside), 1, 0.6)
        hint = f"did you mean {near[0]!r}" if near else f"known: {', '.join(sorted(own))}"
        if near:
            hint += "?" if near[0] in own else f", which belongs into {INSIDE}?"
        raise ConfigError(f"{source}: {key}: unknown key; {hint}")


def _connector(data: Mapping[str, Any], source: str) -> tuple[str, str | None, dict[str, Any]]:
    entries = data.get(_CONNECTORS)
    if not isinstance(entries, (list, tuple)) or len(entries) != 1:
        found = f"; {len(entries)} are given" if isinstance(entries, (list, tuple)) else ""
        raise ConfigError(
            f"{source}: {_CONNECTORS}: exactly one connector is needed{found}; {_EXAMPLE}"
        )
    entry, where = entries[0], f"{source}: {_CONNECTORS}[0]"
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: a mapping is needed, not {entry!r}; {_EXAMPLE}")
    for key in entry:
        if key not in _CONNECTOR_KEYS:
            raise ConfigError(f"{where}.{key}: {_not_in_an_entry(str(key))}")
    name, module = entry.get("ucm_connector_name"), entry.get("ucm_connector_module_path")
    for key, value in (("ucm_connector_name", name), ("ucm_connector_module_path", module)):
        if value is not None and not (isinstance(value, str) and value):
            raise ConfigError(f"{where}.{key}: {value!r} is not a name")
    store = entry.get("ucm_connector_config")
    if not isinstance(store, Mapping):
        raise ConfigError(f"{where}: ucm_connector_config must be a mapping of the store's options")
    known = (PIPELINE_STORE, *OLDER_STORES)
    if name is None:
        raise ConfigError(f"{where}.ucm_connector_name: it is needed; one of {', '.join(known)}")
    if name not in known and module is None:
        near = difflib.get_close_matches(name, known, 1, 0.6)
        hint = f"did you mean {near[0]!r}" if near else f"known: {', '.join(known)}"
        raise ConfigError(
            f"{where}.ucm_connector_name: {name!r} is unknown; {hint}; a class elsewhere needs "
            "ucm_connector_module_path"
        )
    return name, module, dict(store)


def _not_in_an_entry(key: str) -> str:
    if any(key == option.name for option in ENGINE_OPTIONS):
        return f"it belongs {options.ELSEWHERE}"
    if key in options.known_names():
        return f"it is an option of a store; move it to {INSIDE}"
    near = difflib.get_close_matches(key, _CONNECTOR_KEYS, 1, 0.6)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_CONNECTOR_KEYS)}"
    return f"unknown key; {hint}"


def _check_store(config: Config) -> list[str]:
    """Check the options of a pipeline that its string describes; return its notes."""
    if not is_pipeline(config):
        return []  # what opens it knows its options
    from ucm import layout, pipeline

    try:
        checked = pipeline.check(config.connector_config).options
        if any(checked.get(key) for key in SIZES):
            layout.layout_of(checked)
    except ConfigError as error:
        raise ConfigError(f"{config.source}: {INSIDE}.{error}") from None
    return checked.notes


def is_pipeline(config: Config) -> bool:
    """Tell whether the store is stacked as its string says, and not wired by code elsewhere."""
    from ucm.store.pipeline.connector import UcmPipelineStoreBuilder

    if config.connector_name != PIPELINE_STORE or config.connector_module_path:
        return False
    string = str(config.connector_config.get("store_pipeline"))
    return string not in UcmPipelineStoreBuilder._builders


def _contradictions(config: Config) -> None:
    """Refuse pairs of which one would silently lose; both are named."""
    given = {name for name, value in config.values.items() if value.given}

    def refuse(first: str, second: str, why: str) -> None:
        raise ConfigError(f"{config.source}: {first} and {second} contradict: {why}")

    if config.use_lite and is_pipeline(config):
        string = str(config.connector_config.get("store_pipeline", ""))
        if string.split("|")[-1].strip().rpartition(":")[2] != "Fake":
            refuse(
                "use_lite: true",
                f"store_pipeline: {string}",
                "only hits are counted and no bytes are kept; write store_pipeline: Fake, or "
                "leave use_lite out",
            )
    if config.use_lite and "hit_ratio" in given:
        refuse("use_lite: true", "hit_ratio", "nothing is loaded that could be limited")
    if config.enable_metrics is False:
        for key in ("metrics_config_path", "metrics_config"):
            if key in given:
                refuse("enable_metrics: false", key, "keep one of them")
    if {"metrics_config_path", "metrics_config"} <= given:
        refuse("metrics_config_path", "metrics_config", "keep one of them")
    if config.use_request_async_load and config.use_layerwise and "use_layerwise" in given:
        refuse(
            "use_request_async_load: true",
            "use_layerwise: true",
            "a request either waits outside the batch for all of its layers or loads them one by "
            "one inside; keep one of them",
        )
