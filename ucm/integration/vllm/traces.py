"""Records requests in files that ``ucm replay`` reads, for ``enable_record_traces``. No vLLM."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import time
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Any

from ucm import logs
from ucm._logfile import ProcessFile

FOLDER = "log"  # where UCM_LOG_PATH names none


class _TraceFile(ProcessFile):
    """``ucm-trace-HOST-PID.jsonl``: only whole lines stay in it, whatever the disk does."""

    beginning, ending = "ucm-trace", "jsonl"

    def _open(self) -> TextIOWrapper:
        self._folder.mkdir(parents=True, exist_ok=True)
        return super()._open()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or nothing."""
        try:
            if self.shouldRollover(record):
                self.doRollover()
            if self.stream is None:
                self.stream = self._open()
            line = f"{record.getMessage()}\n".encode()
            file = self.stream.fileno()
            before = os.fstat(file).st_size
            if os.write(file, line) < len(line):
                os.ftruncate(file, before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except Exception as error:
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            logs.logger.warning(
                "enable_record_traces: %s is not written, requests are missing from it: %s; make "
                "room, or name another folder with UCM_LOG_PATH",
                self.baseFilename,
                error,
            )


class Recorder:
    """Writes a line for every finished request; calls come from the scheduler's one thread.

    Files are bounded by ``UCM_LOG_MAX_FILES`` and ``UCM_LOG_MAX_SIZE`` as logs are.
    """

    def __init__(self, block_tokens: int, folder: str | None = None) -> None:
        problems: list[str] = []
        max_bytes, max_files = logs.file_limits(problems)
        for problem in problems:
            logs.logger.warning("%s", problem)
        folder = folder or os.environ.get("UCM_LOG_PATH") or FOLDER
        self._block_tokens = block_tokens
        self._file = _TraceFile(folder, max_bytes, max_files)

    def finished(self, request: Any, hashes: Sequence[bytes], output_length: int) -> None:
        """Record a request; of the hashes, those of its prompt's full blocks. Never raises."""
        prompt = int(request.num_prompt_tokens)
        arrival = getattr(request, "arrival_time", None) or time.time()
        line = json.dumps(
            {
                "timestamp": int(arrival * 1000),
                "input_length": prompt,
                "output_length": output_length,
                "hash_ids": [one.hex() for one in hashes[: prompt // self._block_tokens]],
            }
        )
        record = logging.LogRecord("ucm", logging.INFO, __file__, 0, line, None, None)
        self._file.handle(record)

    def close(self) -> None:
        """Close the file; what comes later opens it again."""
        with contextlib.suppress(OSError):
            self._file.close()
