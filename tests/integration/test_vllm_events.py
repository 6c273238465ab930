"""What vLLM's KV events are told of stored blocks."""

import types

from ucm.integration.vllm.events import Announcer
from ucm.integration.vllm.scheduler import SchedulerSide

HASHES = [b"p0", b"p1", b"p2"]
REQUEST = types.SimpleNamespace(
    all_token_ids=list(range(14)), lora_request=None, block_hashes=HASHES, session_id="s"
)


def announced():
    """An announcer of blocks of four tokens, hashed with nothing else."""
    return Announcer(4, lambda request, start, end, media: (None, media))


def told(announcer):
    return [(each["block_hashes"], each["parent_block_hash"]) for each in announcer.take()]


def test_a_block_is_told_of_once_with_its_tokens_and_its_parent():
    announcer = announced()
    announcer.planned(REQUEST, HASHES, [0, 2], 1)
    assert announcer.take() == []
    announcer.stored({b"p2": 1, b"other": 1}, 1)
    (block,) = announcer.take()
    assert block == {
        "block_hashes": [b"p2"],
        "parent_block_hash": b"p1",
        "token_ids": [8, 9, 10, 11],
        "block_size": 4,
        "lora_id": None,
        "lora_name": None,
        "extra_keys": [None],
        "session_id": "s",
    }
    announcer.stored({b"p0": 1, b"p2": 1}, 1)
    assert told(announcer) == [([b"p0"], None)]


def test_a_block_is_told_of_when_every_rank_has_stored_its_part():
    announcer = announced()
    announcer.planned(REQUEST, HASHES, [0], 1)
    announcer.stored({b"p0": 1}, 2)
    assert announcer.take() == []
    announcer.stored({b"p0": 1}, 2)
    assert told(announcer) == [([b"p0"], None)]


def test_blocks_of_an_adapter_name_it():
    lora = types.SimpleNamespace(adapter_id=3, name="poet")
    request = types.SimpleNamespace(**{**vars(REQUEST), "lora_request": lora})
    announcer = announced()
    announcer.planned(request, HASHES, [0], 1)
    announcer.stored({b"p0": 1}, 1)
    (block,) = announcer.take()
    assert (block["lora_id"], block["lora_name"]) == (3, "poet")


def test_a_block_is_called_as_the_engine_calls_it_whatever_the_store_does():
    """Names that tell adapters' weights or resets apart are of use to nobody else."""
    asked = []

    def extra_keys(request, start, end, media):
        asked.append((start, end, media))
        return (("cache_salt", "x"),) if start == 0 else None, media + 1

    announcer = Announcer(4, extra_keys)
    announcer.planned(REQUEST, [b"ours0", b"ours1"], [0, 1], 1)
    announcer.stored({b"ours0": 1, b"ours1": 1, b"p2": 1}, 1)
    blocks = announcer.take()
    assert [each["block_hashes"] + [each["parent_block_hash"]] for each in blocks] == [
        [b"p0", None],
        [b"p1", b"p0"],
    ]
    assert [each["extra_keys"] for each in blocks] == [[(("cache_salt", "x"),)], [None]]
    assert asked == [(0, 4, 0), (4, 8, 1)]


def test_what_a_save_could_not_store_is_forgotten_with_its_end():
    announcer = announced()
    announcer.planned(REQUEST, HASHES, [0, 1, 2], 1)
    announcer.stored({b"p0": 1}, 1)
    announcer.planned(REQUEST, HASHES, [2], 2)  # once more
    announcer.ended([1, 9])
    assert list(announcer._planned) == [b"p2"]
    announcer.ended([2])
    assert not any((announcer._planned, announcer._saves, announcer._save_of, announcer._parts))
    assert told(announcer) == [([b"p0"], None)]


def test_a_step_that_waits_for_its_saves_numbers_them_for_those_who_are_told():
    side = SchedulerSide(4, lambda request: HASHES, planned=lambda *each: None)
    assert [side._numbered("r"), side._numbered("r")] == [1, 2]
    assert side.ended({1: 1}) == [1]
    assert not side.finished("r")  # nobody holds blocks for that


def test_of_too_much_under_way_the_oldest_is_forgotten(monkeypatch):
    monkeypatch.setattr("ucm.integration.vllm.events._PLANNED_TOKENS", 8)
    announcer = announced()
    announcer.planned(REQUEST, HASHES, [0, 1, 2], 1)
    announcer.stored(dict.fromkeys(HASHES, 1), 1)
    assert told(announcer) == [([b"p1"], b"p0"), ([b"p2"], b"p1")]


def test_what_only_some_ranks_could_store_begins_anew():
    announcer = announced()
    for _ in range(2):
        announcer.planned(REQUEST, HASHES, [0], 1)
        announcer.stored({b"p0": 1}, 2)
    assert announcer.take() == []
