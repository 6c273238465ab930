"""The contract of ucm stores, over blocks in another process's memory and in the store's own."""

import subprocess
import sys

import pytest
from cluster import MIB, Peer


@pytest.mark.parametrize("segment", [0, 256 * MIB], ids=["others give memory", "it gives memory"])
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_contract(master, run, segment):
    if not segment:
        run(Peer(master, 1024 * MIB))
    options = {
        "master_server_address": master.address,
        "local_hostname": "127.0.0.1",
        "global_segment_size": segment,
        "local_buffer_size": 0,
        "mooncake_prefix": "{tmp}",
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "--pyargs", "ucm.conformance", "-q", "-rf"),
            *("-p", "no:cacheprovider", "--show-capture=no"),
            # What a store gives to the pool leaves with it, and with it another test's blocks.
            *("-n", "0" if segment else "4"),
            *("--ucm-pipeline", "UcmMooncakeStore"),
            *(f"--ucm-option={key}={value}" for key, value in options.items()),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
