"""Modules outside the package register pipelines with a wiring of their own."""

import importlib
import textwrap
from pathlib import Path

import numpy as np
import pytest

import ucm
from ucm import options
from ucm.loader import Option
from ucm.store.factory_v1 import UcmConnectorFactoryV1
from ucm.store.pipeline.connector import UcmPipelineStore, UcmPipelineStoreBuilder

IDS = [bytes([i] * 16) for i in range(3)]
SIZES = {"block_size": 8192, "shard_size": 4096, "dtype": "bf16"}


@pytest.fixture(autouse=True)
def builders(monkeypatch):
    """Let a test register without leaving anything behind."""
    monkeypatch.setattr(UcmPipelineStoreBuilder, "_builders", {})
    return UcmPipelineStoreBuilder


@pytest.fixture
def wired(builders):
    """Open what a function stacks."""
    stores = []

    def open_with(stack, **config):
        builders.register("Wired", lambda config, pipeline: stack(pipeline))
        store = UcmPipelineStore({"store_pipeline": "Wired", **SIZES, **config})
        stores.append(store)
        return store

    yield open_with
    for store in stores:
        store.close()


def refusal(wired, stack, **config):
    with pytest.raises(ucm.StoreError) as raised:
        wired(stack, **config)
    return str(raised.value)


def test_a_module_outside_registers_a_wiring(heap_library, tmp_path, monkeypatch):
    (tmp_path / "acme_wiring.py").write_text(
        textwrap.dedent(
            f"""
            from ucm.store.pipeline.connector import UcmPipelineStoreBuilder

            def build(config, pipeline):
                pipeline.Stack("Heap", {str(heap_library)!r}, {{"heap_capacity_mb": 1}})
                pipeline.Stack("Compress", None, {{**config, "compress_codec": "small"}})
                pipeline.Stack("Compress", None, {{**config, "compress_codec": "raw"}})

            UcmPipelineStoreBuilder.register("Acme", build)
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    acme = importlib.import_module("acme_wiring")
    assert UcmPipelineStoreBuilder.get("Acme") is acme.build
    store = UcmConnectorFactoryV1.create_connector(
        "UcmPipelineStore", {"store_pipeline": "Acme", **SIZES, "compress_concurrency": 1}
    )
    assert store.store.layers == ("Compress", "Compress#2", "Heap")
    data = np.linspace(1, 2, 4096, dtype=np.float32).view(np.uint16)[1::2].reshape(2, 2048).copy()
    memory = np.zeros_like(data)
    rows = [[row.ctypes.data] for row in data]
    store.wait(store.dump_data(IDS[:1] * 2, [0, 1], rows))
    assert store.lookup(IDS) == [True, False, False]
    store.wait(store.load_data(IDS[:1] * 2, [0, 1], [[row.ctypes.data] for row in memory]))
    assert (memory == data).all()
    stats = store.store.stats()
    # The upper one leaves the bytes as they are, the lower one makes them fewer.
    raw, small = stats["Compress"], stats["Compress#2"]
    assert raw["dump_out_bytes_total"] >= raw["dump_bytes_total"]
    assert small["dump_out_bytes_total"] < 0.8 * small["dump_bytes_total"]
    store.close()


def test_two_layers_of_a_kind_have_options_of_their_own(wired, tmp_path):
    def stack(pipeline):
        pipeline.Stack("Posix", None, {"storage_backends": str(tmp_path), "tensor_size": 8})
        pipeline.Stack("Cache", None, {"cache_buffer_capacity_gb": 0.02})
        pipeline.Stack("Cache", None, {"cache_buffer_capacity_gb": 0.01})

    store = wired(stack).store
    assert store.layers == ("Cache", "Cache#2", "Posix")
    assert store.layout.segment_sizes == (4096,)
    upper, lower = (store.stats()[name] for name in ("Cache", "Cache#2"))
    assert lower["frames"] > upper["frames"]


def test_a_layer_may_be_given_the_keys_of_the_others(wired, tmp_path):
    config = {
        "storage_backends": str(tmp_path),
        "cache_buffer_capacity_gb": 0.01,
        "Posix.timeout_ms": 5000,
        "share_buffer_enable": True,
        "compress_codec": "raw",
        "cache_stream_number": 4,
    }

    def stack(pipeline):
        pipeline.Stack("Posix", config=config)
        pipeline.Stack("Cache", config=config)

    notes = wired(stack).store.notes
    assert sorted(note.partition(":")[0] for note in notes) == [
        "cache_stream_number",
        "compress_codec",
    ]


def test_a_key_of_the_host_that_a_layer_takes_too_is_its_own_or_the_hosts():
    table = (Option("timeout_ms", "int", "30000", "1..", "ms", "What it is."),)
    layers = [("Top", table, {}), ("Mid", table, {"timeout_ms": 7}), ("Low", (), {"dtype": "x"})]
    checked = options.resolve_each({"timeout_ms": 5}, layers)
    assert checked.get("timeout_ms") == 5
    assert [[value.value for value in layer] for layer in checked.layers] == [[5], [7], []]


def test_a_name_without_a_builder_is_stacked_as_it_is_written(builders, tmp_path):
    def build(config, pipeline):
        builders.get("Compress|Posix")(config, pipeline)
        pipeline.Stack("Cache", None, {"cache_buffer_capacity_gb": 0.01})

    builders.register("Mine", build)
    config = {"store_pipeline": "Mine", "storage_backends": str(tmp_path), **SIZES}
    store = UcmPipelineStore(config)
    assert store.store.layers == ("Cache", "Compress", "Posix")
    store.close()
    plain = UcmPipelineStore({"store_pipeline": "Fake", "block_size": 64})
    assert plain.lookup(IDS) == [False] * 3
    plain.close()


def test_a_wiring_is_opened_for_lookup_only(wired, heap_library):
    store = wired(lambda pipeline: pipeline.Stack("Heap", heap_library), device_id=-1)
    assert store.lookup(IDS) == [False] * 3
    assert store.store.lookup_only


def test_a_wiring_may_have_stores_in_python(wired, registered):
    registered(Py=ucm.StoreBase, Layer=ucm.LayerBase)
    cache = {"cache_buffer_capacity_gb": 0.01}
    stack = ("Py", None), ("Cache", cache), ("Layer", None)
    store = wired(lambda p: [p.Stack(name, None, config) for name, config in stack])
    assert store.store.layers == ("Layer", "Cache", "Py")


def test_a_wiring_that_is_wrong_is_said(wired, registered, heap_library, tmp_path):
    posix = {"storage_backends": str(tmp_path)}
    cases = {
        "the builder of 'Wired' stacked nothing": lambda p: None,
        "Cache needs a store below it": lambda p: p.Stack("Cache"),
        "Heap takes no store below it": lambda p: (p.Stack("Empty"), p.Stack("Heap", heap_library)),
        "there is no store 'Posic'; did you mean 'Posix'": lambda p: p.Stack("Posic"),
        "but it calls itself 'Heap'": lambda p: p.Stack("Heat", heap_library),
        "give the absolute path": lambda p: p.Stack("Heap", Path("heap.so")),
        "there is no such file": lambda p: p.Stack("Heap", "/nowhere/heap.so"),
        "io_dirct: unknown option; did you mean 'io_direct'": lambda p: p.Stack(
            "Posix", None, {**posix, "io_dirct": True}
        ),
        "storage_backends: Posix needs it": lambda p: p.Stack("Posix"),
        "17 layers; at most 16": lambda p: [p.Stack("Empty") for _ in range(17)],
    }
    for words, stack in cases.items():
        assert words in refusal(wired, stack)
