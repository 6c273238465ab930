"""Build step: write the C source of `ucm._abi` from the headers themselves.

python _abi_build.py COMPILER INCLUDE_DIR OUTPUT.c
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import cffi


def declarations(compiler: list[str], header: Path, include_dir: Path) -> str:
    """The header as cffi can parse it: no directives, no inline functions, no system types."""
    with tempfile.TemporaryDirectory() as empty:
        for name in ("stddef.h", "stdint.h"):
            Path(empty, name).touch()
        flags = ["-E", "-P", "-x", "c", "-nostdinc", "-DUCM_DECLARATIONS_ONLY", f"-I{empty}"]
        done = subprocess.run(
            [*compiler, *flags, f"-I{include_dir}", str(header)],
            check=True,
            capture_output=True,
            text=True,
        )
    return done.stdout


def main(compiler: str, include_dir: str, output: str) -> None:
    host = Path(__file__).with_name("_host.h")
    builder = cffi.FFI()
    builder.cdef(declarations(compiler.split(), host, Path(include_dir)))
    builder.set_source("ucm._abi", '#include "_host.h"\n', py_limited_api=True)
    builder.emit_c_code(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
