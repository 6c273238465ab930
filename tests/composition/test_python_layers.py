"""Layers in Python: what goes through them, and what they do to it."""

import pytest
from test_python_stores import BLOCK, CACHE, ONE, TWO, Memory, dump, ends, load, made, opened

import ucm
from ucm import Status

__all__ = ["opened"]


class Plain(ucm.LayerBase):
    """Defines nothing."""


class Watch(ucm.LayerBase):
    """Hands on all transfers and remembers them."""

    seen = []

    def dump(self, block_ids, shard_index, shards):
        answers = self.lower.dump(block_ids, shard_index, shards)
        self.seen.append(("dump", answers))
        return answers

    def load(self, block_ids, shard_index, shards):
        answers = self.lower.load(block_ids, shard_index, shards)
        self.seen.append(("load", answers))
        return answers


@pytest.fixture(autouse=True)
def _nothing_seen():
    Watch.seen.clear()


LAYERS = {"Plain": Plain, "Watch": Watch}


@pytest.mark.parametrize(
    "pipeline", ["Plain|Memory", "Watch|Memory", "Watch|Cache|Memory", "Cache|Watch|Plain|Memory"]
)
def test_a_layer_may_stand_wherever_a_store_is_below_it(opened, pipeline):
    store = opened(pipeline, CACHE if "Cache" in pipeline else {}, **LAYERS)
    assert store.capabilities >= {"keeps", "loads", "remove", "cancel"}
    store.wait(dump(store, ONE, TWO))
    assert store.drain().stored == 2
    task, rooms = load(store, ONE, TWO)
    store.wait(task)
    assert rooms == [ONE * 4, TWO * 4]
    store.remove([ONE])
    assert store.lookup([ONE, TWO]) == [False, True]
    store.prefetch([TWO])


def test_a_layer_needs_a_store_below_it_and_a_store_takes_none(opened):
    with pytest.raises(ucm.ConfigError, match="Plain needs a store below it"):
        opened("Plain", **LAYERS)
    with pytest.raises(ucm.ConfigError, match="Memory takes no store below it"):
        opened("Memory|Plain|Fake", **LAYERS)


@pytest.mark.parametrize(("pipeline", "tier"), [("Plain|Memory", 2), ("Watch|Plain|Memory", 3)])
def test_a_layer_adds_its_depth_to_what_a_lookup_finds(opened, pipeline, tier):
    store = opened(pipeline, **LAYERS)
    store.wait(dump(store, ONE))
    assert store.tiers([ONE, TWO]) == [tier, 0]
    assert store.lookup_on_prefix([ONE, TWO]) == 0
    assert store.lookup_on_reverse([TWO, ONE]) == 1


def test_a_layer_sees_how_each_shard_ended_below(opened):
    store = opened("Watch|Memory", **LAYERS)
    store.wait(dump(store, ONE))
    assert ends(store, load(store, ONE, TWO)[0]) == [Status.NOT_FOUND] * 2  # KeyError of Memory
    made[0].errors[TWO] = ucm.NoSpaceError("full")
    task = dump(store, ONE, TWO)
    assert ends(store, task) == [Status.OK, Status.NO_SPACE]
    assert task.results[0].published
    _, (stored, refused) = Watch.seen[-1]
    assert stored == ucm.Dumped.PUBLISHED
    assert isinstance(refused, ucm.NoSpaceError)


def test_lengths_before_encoding_reach_the_store_below(opened):
    class Half(ucm.LayerBase):
        """Keeps the first half of a shard only."""

        encoding = "half.1"
        seen = None

        @classmethod
        def lower_layout(cls, layout, options):
            return layout.resized(layout.shard_size // 2)

        def dump(self, block_ids, shard_index, shards):
            Half.seen = (self.layout, self.lower.layout)
            return self.lower.dump(block_ids, shard_index, [s[0][: len(s[0]) // 2] for s in shards])

    store = opened("Half|Compress|Memory", Half=Half)
    store.wait(store.dump_data([ONE], [0], [[_address(ONE * 4)]], [30]))
    upper, lower = Half.seen
    assert (upper.shard_size, upper.encoding) == (BLOCK, "")
    assert (lower.shard_size, lower.raw_shard_size, lower.encoding) == (32, BLOCK, "half.1")
    assert made[0].layout.encoding.startswith("half.1+ucmz")
    assert made[0].layout.raw_shard_size == BLOCK
    assert store.stats()["Compress"]["dump_bytes_total"] == 15


class Longer(ucm.CodecBase):
    """Puts something before the bytes."""

    encoding = "longer.1"

    @classmethod
    def encoded_size(cls, size):
        return size + 2

    def encode(self, data):
        return b"<>" + data

    def decode(self, data):
        if not data.startswith(b"<>"):
            raise ValueError("no mark")
        return data[2:]


def test_a_codec_says_only_what_becomes_of_the_bytes(opened):
    store = opened("Longer|Memory", Longer=Longer)
    store.wait(dump(store, ONE, TWO))
    assert made[0].blocks[ONE] == b"<>" + ONE * 4
    assert made[0].layout.encoding == "longer.1"
    made[0].blocks[TWO] = b"??" + TWO * 4
    task, rooms = load(store, ONE, TWO)
    assert ends(store, task) == [Status.OK, Status.CORRUPT]
    assert rooms[0] == ONE * 4
    store.wait(dump(store, TWO))  # which replaces what could not be read
    assert made[0].blocks[TWO] == b"<>" + TWO * 4


def _address(data):
    import ctypes

    return ctypes.addressof(ctypes.create_string_buffer(data))


def test_what_a_layer_could_not_read_is_replaced_by_the_next_dump(opened):
    class Checks(Watch):
        def load(self, block_ids, shard_index, shards):
            self.lower.load(block_ids, shard_index, shards)
            return [
                BLOCK if shard[0] == block_id * 4 else ucm.CorruptError("not what was dumped")
                for block_id, shard in zip(block_ids, shards, strict=True)
            ]

    store = opened("Checks|Memory", Checks=Checks)
    store.wait(dump(store, ONE))
    made[0].blocks[ONE] = bytes(BLOCK)
    assert ends(store, load(store, ONE)[0]) == [Status.CORRUPT]
    store.wait(dump(store, ONE))
    assert ends(store, load(store, ONE)[0]) == [Status.OK]
    store.wait(dump(store, ONE))
    assert [verb for verb, _ in made[0].calls].count("remove") == 1


def test_a_store_that_is_busy_is_waited_for(opened):
    class Small(Memory):
        max_shards = threads = 1

    store = opened("Watch|Small", Small=Small, **LAYERS)
    tasks = [dump(store, bytes([i] * 16)) for i in range(20)]
    assert {status for task in tasks for status in ends(store, task)} == {Status.OK}


def test_the_store_below_refuses_calls_after_the_end(opened):
    kept = []

    class Keeps(Watch):
        def close(self):
            kept.append(self.lower)
            self.lower.lookup([ONE])

    store = opened("Keeps|Memory", Keeps=Keeps)
    store.close()
    with pytest.raises(ucm.ClosedError, match="the store below Keeps"):
        kept[0].lookup([ONE])


BAD_MEMORY = {
    "too little for a load": lambda lower: lower.load([ONE], [0], [bytearray(BLOCK - 1)]),
    "read-only for a load": lambda lower: lower.load([ONE], [0], [bytes(BLOCK)]),
    "too much": lambda lower: lower.dump([ONE], [0], [bytes(BLOCK + 1)]),
    "one for two": lambda lower: lower.dump([ONE, TWO], [0, 0], [bytes(BLOCK)]),
    "odd pieces": lambda lower: lower.dump([ONE], [0], [[b"a", b"b"]]),
}


@pytest.mark.parametrize("call", BAD_MEMORY.values(), ids=BAD_MEMORY.keys())
def test_memory_that_does_not_fit_is_refused(opened, call):
    class Wrong(Watch):
        def dump(self, block_ids, shard_index, shards):
            return call(self.lower)

    store = opened("Wrong|Memory", Wrong=Wrong)
    assert set(ends(store, dump(store, TWO))) <= {Status.INVALID, Status.INTERNAL}
    assert made[0].calls == []


def test_one_buffer_does_for_a_shard_of_many_segments(opened):
    class Joins(Watch):
        def dump(self, block_ids, shard_index, shards):
            return self.lower.dump(block_ids, shard_index, [b"".join(s) for s in shards])

        def load(self, block_ids, shard_index, shards):
            room = bytearray(BLOCK)
            (length,) = self.lower.load(block_ids, shard_index, [room])
            return [self.fill(shards[0], room[:length])]

    store = opened("Joins|Memory", {"tensor_size_list": [40, 24]}, Joins=Joins)
    store.wait(store.dump([ONE], [0], [[b"a" * 40, b"b" * 24]]))
    a, b = bytearray(40), bytearray(24)
    store.wait(store.load([ONE], [0], [[a, b]]))
    assert (a, b) == (b"a" * 40, b"b" * 24)


def test_a_layer_that_says_too_much_is_refused(opened):
    class Long(Watch):
        encoding = "x" * 64

    class NoLayout(Watch):
        @classmethod
        def lower_layout(cls, layout, options):
            return layout.shard_size

    with pytest.raises(ucm.UnsupportedError, match="use fewer encoding layers"):
        opened("Long|Memory", Long=Long)
    with pytest.raises(ucm.PluginError, match="has to return a ucm"):
        opened("NoLayout|Memory", NoLayout=NoLayout)


def test_a_pipeline_with_layers_is_opened_for_lookup_only(opened, tmp_path):
    posix = {"storage_backends": str(tmp_path)}
    store = opened("Watch|Posix", posix, **LAYERS)
    store.wait(dump(store, ONE))
    reader = opened("Watch|Posix", {**posix, "device_id": -1}, **LAYERS)
    assert reader.lookup([ONE, TWO]) == [True, False]


def build(layout, options, lower):
    """Makes either, by an option."""
    if lower is not None:
        return Watch(layout, options, lower)
    store = Memory(layout, options)
    store.threads = options["build_threads"]
    return store


build.OPTIONS = (ucm.Option("build_threads", "int", "2", "1..64", None, "Threads."),)


def test_a_builder_makes_stores_of_special_wiring(opened):
    store = opened("Built|Cache|Built", {**CACHE, "build_threads": 1}, Built=build)
    assert store.layers == ("Built", "Cache", "Built#2")
    store.wait(dump(store, ONE))
    assert store.lookup([ONE]) == [True]
    assert made[0].threads == 1
    with pytest.raises(ucm.ConfigError, match="build_threads: 0 is not allowed"):
        opened("Built", {"build_threads": 0}, Built=build)


def test_a_builder_that_makes_no_store_is_refused(opened):
    with pytest.raises(ucm.PluginError, match="returned NoneType"):
        opened("Built", Built=lambda layout, options, lower: None)
