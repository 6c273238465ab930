"""Every pipeline that the contract is tested on."""

import os

import pytest
from dict_store import DictStore
from python_layers import Watch, Zlib

from ucm import registry
from ucm.conformance.fixtures import Target, open_store, rng, store

__all__ = ["open_store", "rng", "store"]

BOTTOM = ["Empty", "Fake", "Posix"]
OWN = [upper + bottom for bottom in BOTTOM for upper in ("", "Cache|", "Compress|")]
OWN += ["Cache|Compress|Posix", "Compress|Cache|Posix"]
VARIANTS = ["Posix, direct", "Cache|Compress|Posix, direct", "Fault|Posix", "Cache|Fault|Posix"]
VARIANTS += ["Posix, aio", "Posix, io_uring"]  # direct too
THEIRS = ["Dict", "Heap", "Compress|Heap"]
# Python at the bottom, in the middle and on top
THEIRS += ["Cache|Dict", "Compress|Dict", "Cache|Zlib|Posix", "Watch|Cache|Posix"]
OF_3FS = ["Ds3fs", "Cache|Ds3fs", "Cache|Compress|Ds3fs"]

# Each layer and each store of these is held to the whole contract elsewhere above: what they add
# is that bytes pass from one to the other. UCM_TEST_PIPELINES=all holds these to all of it too.
COMBINED = ["Cache|Empty", "Compress|Empty", "Cache|Fake", "Compress|Fake", "Cache|Fault|Posix"]
COMBINED += ["Compress|Cache|Posix", "Cache|Compress|Posix, direct", "Compress|Heap"]
COMBINED += ["Cache|Dict", "Compress|Dict", "Cache|Compress|Ds3fs"]
WHERE_BYTES_PASS = ("test_transfers", "test_lookup")

OPTIONS = {
    "Cache": {"cache_buffer_capacity_gb": "0.03125"},
    "Posix": {"storage_backends": "{tmp}", "posix_data_trans_concurrency": "4"},
    "Heap": {"heap_capacity_mb": "64"},
    "Ds3fs": {
        "storage_backends": "{tmp}",
        "stream_number": "4",
        "ds3fs_request_timeout_ms": "60000",  # of a machine that does much else
    },
}


@pytest.fixture(scope="session")
def third_party(heap_library):
    """Return a function that makes the stores that are not ours known, as third parties do."""
    known = []

    def make_known():
        if known == [registry.registry()]:
            return
        registry.registry.cache_clear()
        known[:] = [registry.registry()]
        for name, theirs in {"Dict": DictStore, "Watch": Watch, "Zlib": Zlib}.items():
            known[0].register(name, theirs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UCM_PLUGINS", str(heap_library))
        yield make_known
    registry.registry.cache_clear()


@pytest.fixture(autouse=True)
def _known(request):
    """Tests of other folders, which may have run in between, leave another registry."""
    if "target" in request.fixturenames:
        request.getfixturevalue("third_party")()


def target_of(name):
    """Return the target of a pipeline string; 'Posix, aio' has that engine and io_direct on."""
    pipeline, _, way = name.partition(", ")
    options = [OPTIONS.get(word, {}) for word in pipeline.split("|")]
    options.append({"io_direct": "true"} if way else {})
    options.append({"posix_io_engine": way} if way not in ("", "direct") else {})
    return Target(pipeline, {key: value for part in options for key, value in part.items()})


def params():
    return [
        *OWN,
        *VARIANTS,
        *THEIRS,
        *[pytest.param(p, marks=pytest.mark.real_3fs) for p in OF_3FS],
    ]


def pytest_collection_modifyitems(config, items):
    if os.environ.get("UCM_TEST_PIPELINES") == "all":
        return

    def runs(item):
        combined = hasattr(item, "callspec") and item.callspec.params.get("target") in COMBINED
        return not combined or item.function.__module__.endswith(WHERE_BYTES_PASS)

    config.hook.pytest_deselected(items=[item for item in items if not runs(item)])
    items[:] = [item for item in items if runs(item)]


@pytest.fixture(scope="session", params=params())
def target(request, third_party):
    target = target_of(request.param)
    if "Ds3fs" in target.pipeline:
        target.options["ds3fs_library"] = str(request.getfixturevalue("hf3fs_library"))
    return target


@pytest.fixture(autouse=True)
def mount(request, tmp_path):
    """Make of the test's folder what the stand-in takes for a mount of 3FS."""
    if "target" not in request.fixturenames or os.environ.get("HF3FS_MOUNT"):
        return
    if "Ds3fs" in request.getfixturevalue("target").pipeline:
        (tmp_path / "3fs-virt" / "iovs").mkdir(parents=True)
