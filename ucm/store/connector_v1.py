"""Stores of older configurations with raw ids: a pipeline under another name."""

from __future__ import annotations

from typing import Any

from ucm.store import older_options
from ucm.store.pipeline.connector import UcmPipelineStore


class UcmNfsStore(UcmPipelineStore):
    """``Cache|Posix``, or ``store_pipeline``, that also understands the older keys."""

    def __init__(self, config: dict[str, Any]) -> None:
        older = older_options.translate(config)
        with older.naming():
            super().__init__(older.config)
        self.config = config
        older.report(self.store)


class UcmPCStore(UcmNfsStore):
    """The same under another name."""


UcmPcStore = UcmPCStore
