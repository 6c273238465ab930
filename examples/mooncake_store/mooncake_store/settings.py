"""The options, by the names that Mooncake's own configuration files have."""

import dataclasses
import json
import os
import socket

import ucm
from ucm import Option
from ucm.options import check_value

OPTIONS = (
    Option(
        "master_server_address",
        "string",
        "",
        None,
        None,
        "HOST:PORT of mooncake_master; needed here or in the file.",
    ),
    Option(
        "metadata_server",
        "string",
        "P2PHANDSHAKE",
        None,
        None,
        "Where clients find each other; the default needs no server.",
    ),
    Option(
        "local_hostname",
        "string",
        "",
        None,
        None,
        "How other clients reach this one; default: the address that faces the master.",
    ),
    Option("protocol", "string", "tcp", None, None, "tcp, rdma, or another that Mooncake has."),
    Option("device_name", "string", "", None, None, "Network devices for rdma, such as mlx5_0."),
    Option(
        "global_segment_size",
        "size",
        "3355443200",
        "0..",
        "bytes",
        "Memory that this process gives to the pool; 0: others give it.",
    ),
    Option(
        "local_buffer_size",
        "size",
        "16777216",
        "0..",
        "bytes",
        "Mooncake's buffer of its own; this store does not use it.",
    ),
    Option("replica_num", "int", "1", "1..", None, "Copies of each block."),
    Option(
        "mooncake_config_path",
        "string",
        "",
        None,
        None,
        "A JSON file with these names; default: $MOONCAKE_CONFIG_PATH.",
    ),
    Option("mooncake_timeout_ms", "int", "5000", "100..", "ms", "Limit of a call to Mooncake."),
    Option("mooncake_prefix", "string", "ucm", None, None, "What all objects' names begin with."),
    Option("namespace", "string", "default", None, None, "Whose blocks: a tenant, team, purpose."),
    Option("model", "string", "", None, None, "The model whose KV cache it is."),
    Option("fingerprint", "string", "", None, None, "What else tells what the bytes mean."),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to connect to, and how."""

    master_server_address: str
    metadata_server: str
    local_hostname: str
    protocol: str
    device_name: str
    global_segment_size: int
    local_buffer_size: int
    replica_num: int
    timeout: float

    @classmethod
    def of(cls, options):
        """Take what differs from the default, then the file, then the default."""
        path = options["mooncake_config_path"] or os.environ.get("MOONCAKE_CONFIG_PATH", "")
        file = _read(path) if path else {}
        initial = {o.name: check_value(o, o.initial) for o in OPTIONS}
        names = [field.name for field in dataclasses.fields(cls)][:-1]
        values = {}
        for option in (o for o in OPTIONS if o.name in names):
            value = options[option.name]
            if value == initial[option.name] and file.get(option.name) is not None:
                value = check_value(option, file[option.name], f"{path}: {option.name}")
            values[option.name] = value
        if not values["master_server_address"]:
            raise ucm.ConfigError(
                "master_server_address: it is needed, HOST:PORT of mooncake_master; "
                "or name a file that has it in mooncake_config_path or $MOONCAKE_CONFIG_PATH"
            )
        values["local_hostname"] = values["local_hostname"] or _facing(
            values["master_server_address"]
        )
        return cls(**values, timeout=options["mooncake_timeout_ms"] / 1000)


def _read(path):
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
    except (OSError, ValueError) as error:
        raise ucm.ConfigError(f"mooncake_config_path: {path}: {error}") from None
    if not isinstance(values, dict):
        raise ucm.ConfigError(f"mooncake_config_path: {path}: it must hold one object, {{...}}")
    return values


def _facing(address):
    """Find the address of this machine from which packets to the master leave."""
    host = address.partition(",")[0].rpartition("://")[2].rpartition(":")[0].strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))
            return probe.getsockname()[0]
    except OSError as error:
        raise ucm.UnavailableError(
            f"master_server_address: {address!r}: {error}; give local_hostname if it is right"
        ) from None
