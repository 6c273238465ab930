"""Every pipeline that the contract is tested on."""

import pytest
from dict_store import DictStore
from python_layers import Watch, Zlib

from ucm import registry
from ucm.conformance.fixtures import Target, open_store, rng, store

__all__ = ["open_store", "rng", "store"]

UPPER = ["", "Cache|", "Compress|", "Cache|Compress|", "Compress|Cache|"]
BOTTOM = ["Empty", "Fake", "Posix"]
OWN = [upper + bottom for bottom in BOTTOM for upper in UPPER]
VARIANTS = ["Posix, direct", "Cache|Compress|Posix, direct", "Fault|Posix", "Cache|Fault|Posix"]
VARIANTS += ["Posix, aio", "Posix, io_uring"]  # direct too
THEIRS = ["Dict", "Heap", "Compress|Heap"]
# Python at the bottom, in the middle and on top
THEIRS += ["Cache|Dict", "Compress|Dict", "Cache|Zlib|Posix", "Watch|Cache|Posix"]

OPTIONS = {
    "Cache": {"cache_buffer_capacity_gb": "0.03125"},
    "Posix": {"storage_backends": "{tmp}", "posix_data_trans_concurrency": "4"},
    "Heap": {"heap_capacity_mb": "64"},
}


@pytest.fixture(scope="session")
def third_party(heap_library):
    """Make the stores that are not ours known, by the ways that third parties have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UCM_PLUGINS", str(heap_library))
        registry.registry.cache_clear()
        for name, store in {"Dict": DictStore, "Watch": Watch, "Zlib": Zlib}.items():
            registry.registry().register(name, store)
    yield
    registry.registry.cache_clear()


def target_of(name):
    """Return the target of a pipeline string; 'Posix, aio' has that engine and io_direct on."""
    pipeline, _, way = name.partition(", ")
    options = [OPTIONS.get(word, {}) for word in pipeline.split("|")]
    options.append({"io_direct": "true"} if way else {})
    options.append({"posix_io_engine": way} if way not in ("", "direct") else {})
    return Target(pipeline, {key: value for part in options for key, value in part.items()})


@pytest.fixture(scope="session", params=[*OWN, *VARIANTS, *THEIRS])
def target(request, third_party):
    return target_of(request.param)
