"""What is in storage directories, as docs/block-format.md says; no store is opened for it."""

from ucm.directory.checking import Checked, Finding, check, stored_bytes
from ucm.directory.collecting import Collected, collect
from ucm.directory.names import check_format
from ucm.directory.reading import (
    SAMPLED_HEADERS,
    Block,
    Directory,
    Headers,
    Space,
    blocks,
    idle_seconds,
    inspect,
)
from ucm.directory.removing import remove

__all__ = [
    "SAMPLED_HEADERS",
    "Block",
    "Checked",
    "Collected",
    "Directory",
    "Finding",
    "Headers",
    "Space",
    "blocks",
    "check",
    "check_format",
    "collect",
    "idle_seconds",
    "inspect",
    "remove",
    "stored_bytes",
]
