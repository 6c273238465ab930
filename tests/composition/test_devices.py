"""Memory of a device: which pipelines take it, and what reaches the top layer of a transfer."""

from pathlib import Path

import pytest
from support import compile_library

import ucm
from ucm.store.connector import UcmNfsStore
from ucm.store.pipeline.connector import UcmPipelineStore

IDS = [bytes([i]) * 16 for i in range(2)]
CUDA = {"memory": "cuda", "device_id": 3, "block_size": 64}
NONE = 2**64 - 1  # -1, as metrics show it


class Place(str):
    @property
    def type(self):
        return self.partition(":")[0]


class Tensor:
    """What torch shows of a tensor."""

    dtype = "torch.uint8"

    def __init__(self, device):
        self.device = Place(device)

    def is_contiguous(self):
        return True

    def data_ptr(self):
        return 0x5A00

    def numel(self):
        return 64

    def element_size(self):
        return 1


@pytest.fixture(scope="session")
def device_library(tmp_path_factory):
    source = Path(__file__).with_name("device.c")
    return compile_library(source, tmp_path_factory.mktemp("device") / "device.so")


@pytest.fixture
def seen(registered, device_library):
    """Return a function that tells what the store's library was given."""
    registered(device_library)
    return lambda store: next(iter(store.stats().values()))


def open_device(**options):
    return ucm.open_pipeline("Device", **{**CUDA, **options})


def test_memory_and_device_are_in_the_layout(seen):
    with open_device() as store:
        assert (store.layout.memory, store.layout.device) == ("cuda", 3)
        assert (seen(store)["memory"], seen(store)["device"]) == (1, 3)


@pytest.mark.parametrize("options", [{"memory": "host"}, {"memory": None}, {"device_id": -1}])
def test_without_them_it_is_the_hosts(seen, options):
    with open_device(**options) as store:
        assert (store.layout.memory, store.layout.device) == ("host", -1)
        assert (seen(store)["memory"], seen(store)["device"]) == (0, NONE)


def test_other_kinds_are_refused(seen):
    with pytest.raises(ucm.ConfigError, match="memory: 'rocm'"):
        open_device(memory="rocm")


@pytest.mark.parametrize("pipeline", ["Empty", "Compress|Empty"])
def test_a_pipeline_whose_top_takes_host_memory_only_is_refused(pipeline):
    with pytest.raises(ucm.ConfigError, match=f"memory: {pipeline.split('|')[0]} takes host"):
        ucm.open_pipeline(pipeline, **CUDA)


def test_a_store_in_python_is_refused(registered):
    class Plain(ucm.StoreBase):
        """Nothing."""

    registered(Plain=Plain)
    with pytest.raises(ucm.ConfigError, match="memory: Plain takes host memory only"):
        ucm.open_pipeline("Plain", **CUDA)


def test_interfaces_that_copy_on_the_host_refuse():
    with pytest.raises(ucm.ConfigError, match="memory: this interface copies"):
        UcmNfsStore({"memory": "cuda", "storage_backends": ".", "io_size": 64, "block_size": 64})


def test_plugins_tell_what_they_take(seen):
    takes = {info.name: info.takes_cuda for info in ucm.plugins()}
    assert takes["Device"] is True
    assert takes["Posix"] is False


def test_tensors_have_to_be_on_the_device(seen):
    with open_device() as store:
        store.wait(store.dump(IDS[:1], [0], [[Tensor("cuda:3")]]))
        assert seen(store)["address"] == 0x5A00
        store.wait(store.load(IDS[:1], [0], [[Tensor("cuda:3")]]))
        for device in ("cuda:0", "cpu"):
            with pytest.raises(ucm.InvalidError, match=f"on {device}, but .* takes cuda:3"):
                store.dump(IDS[:1], [0], [[Tensor(device)]])
        with pytest.raises(ucm.InvalidError, match="an array is in host memory"):
            store.load(IDS[:1], [0], [[bytearray(64)]])
    host, refused = open_device(memory="host"), "on cuda:3, but this pipeline takes cpu"
    with host as store, pytest.raises(ucm.InvalidError, match=refused):
        store.dump(IDS[:1], [0], [[Tensor("cuda:3")]])


def moves(store):
    """Every call that moves shards, with an event or without."""
    rows, addresses = [[Tensor("cuda:3")]], [[0x5A00]]
    return {
        "load": lambda **event: store.load(IDS[:1], [0], rows, **event),
        "dump": lambda **event: store.dump(IDS[:1], [0], rows, **event),
        "load_data": lambda **event: store.load_data(IDS[:1], [0], addresses, **event),
        "dump_data": lambda **event: store.dump_data(IDS[:1], [0], addresses, **event),
    }


@pytest.mark.parametrize("call", ["load", "dump", "load_data", "dump_data"])
def test_an_event_is_handed_on(seen, call):
    with open_device() as store:
        move = moves(store)[call]
        store.wait(move(prerequisite_handle=2**47 + 5))
        assert (seen(store)["flags"], seen(store)["event"]) == (1, 2**47 + 5)
        store.wait(move())
        assert (seen(store)["flags"], seen(store)["event"]) == (0, 0)


def test_an_event_of_the_older_interface_is_handed_on(seen):
    store = UcmPipelineStore({"store_pipeline": "Device", **CUDA})
    store.wait(store.dump_data(IDS[:1], [0], [[0x5A00]], 77))
    assert (seen(store.store)["flags"], seen(store.store)["event"]) == (1, 77)
    store.close()


@pytest.mark.parametrize("event", [-1, 2**64, "event", None, True])
def test_what_is_no_handle_is_refused(seen, event):
    refused = "prerequisite_handle: the handle of an event"
    with open_device() as store, pytest.raises(ucm.InvalidError, match=refused):
        moves(store)["dump_data"](prerequisite_handle=event)


def test_where_nothing_waits_for_events_they_are_refused():
    refused = "prerequisite_handle: no layer"
    host = ucm.open_pipeline("Empty", block_size=64)
    with host as store, pytest.raises(ucm.UnsupportedError, match=refused):
        store.dump(IDS[:1], [0], [[bytes(64)]], prerequisite_handle=7)
