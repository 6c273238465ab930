"""The import paths and calls of programs written for the older interface."""

import os
import textwrap
from pathlib import Path

import pytest

import ucm
from ucm.store.factory import UcmConnectorFactory
from ucm.store.factory_v1 import UcmConnectorFactoryV1
from ucm.store.pipeline.connector import UcmPipelineStore
from ucm.store.ucmstore import UcmKVStoreBase
from ucm.store.ucmstore_v1 import Task, UcmKVStoreBaseV1

torch = pytest.importorskip("torch", reason="the older interface moves torch tensors")

IDS = [bytes([i] * 16) for i in range(3)]
SEED_STORE = Path(__file__).with_name("seed_store.py").read_text()


@pytest.fixture
def factory(monkeypatch):
    """Let a test register without leaving anything behind."""
    monkeypatch.setattr(UcmConnectorFactoryV1, "_known", dict(UcmConnectorFactoryV1._known))
    return UcmConnectorFactoryV1


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module that can be imported by name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, code):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(code))
        return name

    return write


@pytest.fixture
def config(tmp_path):
    folder = tmp_path / "kv"
    folder.mkdir(exist_ok=True)
    return {
        "store_pipeline": "Cache|Compress|Posix",
        "storage_backends": str(folder),
        "unique_id": f"engine-{os.getpid()}",
        "device_id": 0,
        "block_size": 4096,
        "shard_size": 2048,
        "tensor_size": 1024,
        "cache_buffer_capacity_gb": 0.01,
        "share_buffer_enable": True,
    }


def test_a_pipeline_moves_torch_tensors(config):
    store = UcmConnectorFactoryV1.create_connector("UcmPipelineStore", config)
    assert isinstance(store, UcmKVStoreBaseV1)
    assert store.config is config
    assert store.cc_store() != 0
    rows = [[torch.randn(512).bfloat16(), torch.randn(512).bfloat16()] for _ in range(4)]
    ids, indexes = [IDS[0], IDS[0], IDS[1], IDS[1]], [0, 1, 0, 1]
    task = store.dump(ids, indexes, rows)
    assert isinstance(task, Task)
    store.wait(task)
    assert store.check(task)
    assert store.lookup(IDS) == [True, True, False]
    assert store.lookup_on_prefix(IDS) == store.lookup_on_reverse(IDS) == 1
    assert store.lookup_on_prefix(IDS[2:]) == store.lookup_on_reverse(IDS[2:]) == -1
    store.prefetch(IDS)
    loaded = [[torch.zeros(512, dtype=torch.bfloat16) for _ in row] for row in rows]
    store.wait(store.load(ids, indexes, loaded))
    for tensors, expected in zip(loaded, rows, strict=True):
        assert all(map(torch.equal, tensors, expected))
    again = [[torch.zeros(512, dtype=torch.bfloat16) for _ in row] for row in rows]
    store.wait(store.load_data(ids, indexes, [[t.data_ptr() for t in row] for row in again]))
    assert all(map(torch.equal, again[3], rows[3]))
    store.wait(store.dump_data([IDS[2]] * 2, [0, 1], [[t.data_ptr() for t in r] for r in rows[:2]]))
    assert store.lookup(IDS) == [True, True, True]
    store.close()
    with pytest.raises(ucm.ClosedError):
        store.lookup(IDS)


def test_failures_are_runtime_errors(config):
    store = UcmPipelineStore(config)
    tensors = [[torch.zeros(1024, dtype=torch.uint8)] * 2]
    with pytest.raises(RuntimeError, match=IDS[0].hex()):
        store.wait(store.load([IDS[0]], [0], tensors))
    with pytest.raises(RuntimeError, match="device event"):
        store.dump_data([IDS[0]], [0], [[1, 2]], prerequisite_handle=7)
    with pytest.raises(ValueError, match="shard_index"):
        store.dump([IDS[0]], [2], tensors)
    store.close()


def test_the_scheduler_looks_up_without_sizes(config):
    worker = UcmPipelineStore(config)
    tensors = [[torch.zeros(1024, dtype=torch.uint8)] * 2] * 2
    worker.wait(worker.dump([IDS[0]] * 2, [0, 1], tensors))
    worker.close()
    keys = ("store_pipeline", "storage_backends", "unique_id")
    scheduler = UcmPipelineStore({**{key: config[key] for key in keys}, "device_id": -1})
    assert scheduler.lookup(IDS) == [True, False, False]
    scheduler.close()


def test_a_pipeline_is_needed():
    with pytest.raises(ucm.ConfigError, match="store_pipeline: it is needed"):
        UcmPipelineStore({"block_size": 64})


def test_a_connector_is_found_by_module_path(factory, module):
    store = factory.create_connector("Memory", {"a": 1}, module_path=module("seed_1", SEED_STORE))
    assert type(store).__name__ == "Memory"
    assert store.config == {"a": 1}
    assert store.cc_store() == 0
    assert store.lookup_on_reverse(IDS) == -1


def test_a_registered_connector_is_imported_when_it_is_created(factory, module):
    factory.register_connector("Mine", module("seed_2", SEED_STORE), "Memory")
    factory.register_connector("Mine", "seed_2", "Memory")
    factory.register_connector("Broken", module("seed_3", "import no_such_module"), "Memory")
    assert factory.create_connector("Mine", {}).lookup(IDS) == [False] * 3
    with pytest.raises(ucm.ConfigError, match=r"'Broken'.*no_such_module"):
        factory.create_connector("Broken", {})
    with pytest.raises(ucm.ConfigError, match=r"'Mine' is already registered as seed_2\.Memory"):
        factory.register_connector("Mine", "elsewhere", "Memory")


@pytest.mark.parametrize(
    ("name", "module_path", "words"),
    [
        (
            "Nobody",
            None,
            "'Nobody' is unknown; known: UcmNfsStore, UcmPCStore, UcmPcStore, UcmPipe",
        ),
        ("Nobody", "json", r"json\.Nobody cannot be imported"),
        ("Memory", "no_such_module", "no_such_module"),
        ("JSONDecoder", "json", "not derived from UcmKVStoreBaseV1"),
        ("dumps", "json", "not derived from UcmKVStoreBaseV1"),
    ],
)
def test_a_connector_that_cannot_be_made_is_named(factory, name, module_path, words):
    with pytest.raises(ucm.ConfigError, match=words):
        factory.create_connector(name, {}, module_path)


def test_an_older_store_can_be_named_in_a_pipeline(registered, module):
    import importlib

    registered(Memory=importlib.import_module(module("seed_4", SEED_STORE)).Memory)
    with ucm.open_pipeline("Memory", block_size=64) as store:
        data = bytes(range(64))
        store.wait(store.dump([IDS[0]], [0], [[data]]))
        assert store.lookup(IDS) == [True, False, False]
        memory = bytearray(64)
        store.wait(store.load([IDS[0]], [0], [[memory]]))
        assert memory == data
        with pytest.raises(ucm.NotFoundError):
            store.wait(store.load([IDS[1]], [0], [[memory]]))
        with pytest.raises(ucm.StoreError, match="dump"):
            store.wait(store.dump_data([IDS[2]], [0], [[1]], [8]))


NAMES = ["UcmNfsStore", "UcmPCStore", "UcmPcStore"]


@pytest.mark.parametrize("name", NAMES)
def test_older_names_are_pipelines_with_their_keys_translated(name, tmp_path):
    config = {
        "storage_backends": str(tmp_path),
        "device": 0,
        "kv_block_size": 4096,
        "io_size": 1024,
        "transferIoDirect": False,
        "transferStreamNumber": 8,
        "buffer_number": 4096,
        "local_rank_size": 1,
        "use_scatter_gather": True,
        "shard_data_dir": True,
        "cache_buffer_capacity_gb": 0.01,
    }
    store = UcmConnectorFactoryV1.create_connector(name, config)
    assert store.config is config
    assert store.store.layers == ("Cache", "Posix")
    assert store.store.layout.block_size == store.store.layout.shard_size == 4096
    assert store.store.layout.segment_sizes == (1024,) * 4
    notes = dict(note.split(": ", 1) for note in store.store.notes)
    assert notes["kv_block_size"] == "read as block_size: 4096"
    assert notes["transferIoDirect"] == "read as io_direct: False"
    for key in ("transferStreamNumber", "buffer_number", "local_rank_size", "shard_data_dir"):
        assert notes[key].startswith("no effect, because ")
    tensors = [[torch.randint(0, 255, (1024,), dtype=torch.uint8) for _ in range(4)]]
    store.wait(store.dump([IDS[0]], [0], tensors))
    assert store.lookup(IDS) == [True, False, False]
    store.close()


def test_both_factories_know_the_older_names_and_import_them_when_created(run_python):
    code = """
import sys
from ucm.store.factory import UcmConnectorFactory as old
from ucm.store.factory_v1 import UcmConnectorFactoryV1 as new
print(sorted(set(old._known) & set(new._known)), "ucm._abi" in sys.modules)
"""
    assert run_python(code) == f"{NAMES} False\n"


def test_an_outside_class_of_the_oldest_interface_is_created(monkeypatch, module):
    monkeypatch.setattr(UcmConnectorFactory, "_known", dict(UcmConnectorFactory._known))
    methods = "create lookup prefetch load dump fetch_data dump_data wait commit check"
    code = f"""
from ucm.store.ucmstore import Task, UcmKVStoreBase
body = {{name: lambda self, *args: [name] for name in "{methods}".split()}}
Mine = type("Mine", (UcmKVStoreBase,), body)
"""
    UcmConnectorFactory.register_connector("Own", module("seed_5", code), "Mine")
    UcmConnectorFactory.register_connector("Broken", module("seed_6", "1 / 0"), "Mine")
    for name, path in (("Own", None), ("Mine", "seed_5")):
        store = UcmConnectorFactory.create_connector(name, {"a": 1}, path)
        assert isinstance(store, UcmKVStoreBase)
        assert (store.config, store.cc_store()) == ({"a": 1}, 0)
    with pytest.raises(ucm.ConfigError, match=r"'Broken'.*division by zero"):
        UcmConnectorFactory.create_connector("Broken", {})
    with pytest.raises(ucm.ConfigError, match="is not derived from UcmKVStoreBase"):
        UcmConnectorFactory.create_connector("UcmPipelineStore", {}, "ucm.store.pipeline.connector")
    with pytest.raises(
        ucm.ConfigError, match="'UcmPipelineStore' is unknown; known: Broken, Own, UcmN"
    ):
        UcmConnectorFactory.create_connector("UcmPipelineStore", {})
