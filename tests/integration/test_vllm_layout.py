"""Where a block's bytes lie in the tensors that an engine registers."""

import ctypes

import numpy as np
import pytest
from kv_tensors import BLOCKS, DIM, HEADS, LAYERS, TOKENS, Tensor, registered

import ucm
from ucm.integration.vllm.layout import KvLayout

BLOCK_BYTES = HEADS * TOKENS * 2 * DIM * 2  # of one layer


def bytes_at(layout, block):
    """Return what stands at a block's addresses: for each shard the bytes of its segments."""
    ((_, _, rows),) = layout.rows([b"a" * 16], [block])
    return [b"".join(ctypes.string_at(a, layout.segment_size) for a in map(int, r)) for r in rows]


def test_a_layer_is_a_shard_and_a_block_in_it_one_dense_segment(layout, kv):
    assert (layout.shards_per_block, layout.segments) == (LAYERS, 1)
    assert layout.shard_size == layout.segment_size == BLOCK_BYTES
    assert layout.block_size == LAYERS * BLOCK_BYTES
    for block in range(BLOCKS):
        assert bytes_at(layout, block) == [kv[i, block].tobytes() for i in range(LAYERS)]


def test_layers_stand_in_the_order_of_their_numbers():
    memory = np.zeros((12, 2, 4), np.float16)
    tensors = {f"layers.{i}.attn": Tensor(memory[i]) for i in (10, 2, 11, 0, 9)}
    names = KvLayout(tensors, 2).names
    assert names == tuple(f"layers.{i}.attn" for i in (0, 2, 9, 10, 11))


def test_k_and_v_apart_are_two_segments():
    """[K or V, block, token, head, dimension], as some attention backends want it."""
    memory = np.arange(2 * BLOCKS * 64, dtype=np.uint16).view(np.float16)
    memory = memory.reshape(2, BLOCKS, 4, 2, 8)
    layout = KvLayout({"a": Tensor(memory)}, BLOCKS)
    assert (layout.segments, layout.segment_size) == (2, 128)
    assert bytes_at(layout, 3) == [memory[0, 3].tobytes() + memory[1, 3].tobytes()]


def test_k_and_v_of_a_block_side_by_side_are_one_segment_however_the_view_is_turned():
    memory = np.arange(BLOCKS * 2 * 64, dtype=np.uint16).view(np.float16)
    memory = memory.reshape(BLOCKS, 2, 4, 2, 8)
    layout = KvLayout({"a": Tensor(memory.swapaxes(0, 1))}, BLOCKS)
    assert (layout.segments, layout.segment_size) == (1, 256)
    assert bytes_at(layout, 5) == [memory[5].tobytes()]


def test_layers_may_lie_inside_blocks():
    """All layers of a block side by side: a layer's view steps over the others."""
    memory = np.arange(BLOCKS * LAYERS * 64, dtype=np.uint16).view(np.float16)
    memory = memory.reshape(BLOCKS, LAYERS, 8, 8)
    layout = KvLayout({f"{i}": Tensor(memory[:, i]) for i in range(LAYERS)}, BLOCKS)
    assert bytes_at(layout, 4) == [memory[4, i].tobytes() for i in range(LAYERS)]


def test_the_signature_tells_orders_apart_but_not_numbers_of_blocks():
    def signature(blocks, turn):
        memory = np.zeros((blocks, 2, 4, 8), np.float16)
        return KvLayout({"a": Tensor(memory.transpose(turn))}, blocks).signature

    assert signature(6, (0, 1, 2, 3)) == signature(9, (0, 1, 2, 3))
    assert signature(6, (0, 1, 2, 3)) != signature(6, (0, 2, 1, 3))


def test_a_cache_that_layers_share_is_stored_once():
    memory = np.zeros((2, BLOCKS, 8), np.float16)
    tensors = {"0": Tensor(memory[0]), "1": Tensor(memory[1]), "2": Tensor(memory[0])}
    assert KvLayout(tensors, BLOCKS).names == ("0", "1")


def test_a_row_is_a_shard_and_its_id_and_index_name_it(layout):
    ((ids, indexes, addresses),) = layout.rows([b"a" * 16, b"b" * 16], [4, 2])
    assert [bytes(i) for i in ids] == [b"a" * 16] * LAYERS + [b"b" * 16] * LAYERS
    assert list(indexes) == [0, 1, 2, 0, 1, 2]
    assert addresses.shape == (2 * LAYERS, 1)


def test_rows_of_groups_of_layers_are_the_same_ones(layout):
    (every,) = layout.rows([b"a" * 16, b"b" * 16], [4, 2])
    groups = [range(1), range(2, 3), range(1, 3)]
    cut = layout.rows([b"a" * 16, b"b" * 16], [4, 2], groups)
    for group, some in zip(groups, cut, strict=True):
        picked = [i for i in range(2 * LAYERS) if i % LAYERS in group]
        for all_rows, rows in zip(every, some, strict=True):
            assert (all_rows[picked] == rows).all()
            assert rows.flags.c_contiguous


def test_layers_that_share_a_cache_wait_for_the_same_shard():
    memory = np.zeros((2, BLOCKS, 8), np.float16)
    tensors = {"0": Tensor(memory[0]), "1": Tensor(memory[1]), "2": Tensor(memory[0])}
    layout = KvLayout(tensors, BLOCKS)
    assert [layout.place(name) for name in ("0", "1", "2", "none")] == [0, 1, 0, None]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "no KV cache"),
        ({"a": Tensor(np.zeros((6, 8), np.float16), "cuda")}, "a: its KV cache is on .*cuda"),
        ({"a": Tensor(np.zeros((5, 8), np.float16))}, "no dimension of 6 blocks"),
        ({"a": Tensor(np.zeros((5, 6, 8), np.float16))}, "unknown place"),
        ({"a": Tensor(np.zeros((20, 6, 2), np.float16).transpose(1, 0, 2))}, "over 20 places"),
        (
            {
                "a": Tensor(np.zeros((6, 8), np.float16)),
                "b": Tensor(np.zeros((6, 9), np.float16)),
            },
            "b: a block has 1 x 18 bytes there, but 1 x 16 in a",
        ),
    ],
)
def test_what_cannot_be_stored_is_refused_by_name(tensors, message):
    with pytest.raises(ucm.UnsupportedError, match=message):
        KvLayout(tensors, 6)


def test_registering_in_another_order_changes_nothing(kv, layout):
    turned = KvLayout(dict(reversed(registered(kv).items())), BLOCKS)
    assert turned.names == layout.names
    ids = [b"a" * 16, b"b" * 16]
    ((*_, first),), ((*_, second),) = turned.rows(ids, [1, 2]), layout.rows(ids, [1, 2])
    assert (first == second).all()


def test_a_block_in_parts_has_its_heads_apart(kv, layout):
    parts = KvLayout(registered(kv), BLOCKS, parts=HEADS, heads=HEADS)
    assert parts.block_size * HEADS == layout.block_size
    ((ids, indexes, addresses),) = parts.rows([b"a" * 16, b"b" * 16] * 2, [4, 1])
    assert len(addresses) == 2 * HEADS * LAYERS
    assert list(indexes[:LAYERS]) == list(range(LAYERS))
    assert [bytes(i) for i in ids[::LAYERS]] == [b"a" * 16, b"b" * 16] * 2
    found = [ctypes.string_at(int(a), parts.segment_size) for (a,) in addresses]
    wanted = [kv[i, b, h].tobytes() for b in (4, 1) for h in range(HEADS) for i in range(LAYERS)]
    assert found == wanted


def test_a_part_looks_alike_whatever_number_of_heads_its_worker_holds(kv):
    both = KvLayout(registered(kv), BLOCKS, parts=HEADS, heads=HEADS)
    one = KvLayout(registered(np.ascontiguousarray(kv[:, :, :1])), BLOCKS, parts=1, heads=1)
    assert both.signature == one.signature
    assert both.block_size == one.block_size


def test_heads_that_do_not_lie_apart_are_not_cut(kv):
    inside = {f"{i}": Tensor(np.zeros((BLOCKS, TOKENS, HEADS, DIM), np.float16)) for i in range(2)}
    with pytest.raises(ucm.UnsupportedError, match="2 KV heads do not lie one behind the other"):
        KvLayout(inside, BLOCKS, parts=2, heads=HEADS)
