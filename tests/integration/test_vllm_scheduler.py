"""What the scheduler finds, loads and saves, told by fake requests and steps."""

import types

import pytest

import ucm
from ucm.hashing import Namer
from ucm.integration.vllm import scheduler
from ucm.integration.vllm.collector import Collector
from ucm.integration.vllm.metrics import Selection
from ucm.integration.vllm.scheduler import Part, Policy, SchedulerSide

SIZE = 4  # tokens of a block


class Ids:
    """A store of names alone."""

    def __init__(self):
        self.known = set()
        self.looked_up = 0

    def lookup(self, ids):
        self.looked_up += len(ids)
        return [i in self.known for i in ids]

    def lookup_on_prefix(self, ids):
        found = self.lookup(ids)
        return (found.index(False) if False in found else len(ids)) - 1

    def tiers(self, ids):
        return [2 * (i in self.known) for i in ids]


class Broken(Ids):
    def lookup(self, ids):
        raise ucm.IoError("the mount is gone")


def request(name, tokens, prefix="p", **more):
    """A request of so many tokens; block i of the same prefix has the same hash."""
    fields = {"request_id": name, "num_tokens": tokens, "prefix": prefix, "num_computed_tokens": 0}
    return types.SimpleNamespace(**{**fields, **more})


def hashes(made):
    return [f"{made.prefix}{i}".encode() for i in range(made.num_tokens // SIZE)]


def step(new=(), cached=(), resumed=(), preempted=()):
    """A scheduler's output: new (request, blocks, computed, scheduled), cached alike."""
    rows = [*new, *cached]
    return types.SimpleNamespace(
        preempted_req_ids={r.request_id for r in preempted},
        num_scheduled_tokens={r.request_id: scheduled for r, _, _, scheduled in rows},
        scheduled_new_reqs=[
            types.SimpleNamespace(req_id=r.request_id, block_ids=(blocks,), num_computed_tokens=c)
            for r, blocks, c, _ in new
        ],
        scheduled_cached_reqs=types.SimpleNamespace(
            req_ids=[r.request_id for r, *_ in cached],
            new_block_ids=[(blocks,) if blocks else None for _, blocks, *_ in cached],
            num_computed_tokens=[c for _, _, c, _ in cached],
            resumed_req_ids={r.request_id for r in resumed},
        ),
    )


@pytest.fixture
def store():
    return Ids()


@pytest.fixture
def side(store):
    return attached(store)


def attached(store, ranks=("tp0",), **policy):
    side = SchedulerSide(SIZE, hashes, Policy(**policy))
    side.attach([Part(store, Namer("space", rank)) for rank in ranks])
    return side


def publish(store, made, blocks, ranks=("tp0",)):
    for rank in ranks:
        store.known.update(Namer("space", rank)(hashes(made)[i] for i in blocks))


def run(side, made, blocks, computed_locally=0, scheduled=None):
    """Admit a request and plan its first step, as an engine does."""
    external, _ = side.matched_tokens(made, computed_locally)
    side.admit(made, external)
    computed = computed_locally + external
    scheduled = made.num_tokens - computed if scheduled is None else scheduled
    return side.plan(step(new=[(made, blocks, computed, scheduled)]))


def saved(plan):
    return {s.request_id: [s.table[i] for i in s.picks] for s in plan.saves if s.picks}


def test_what_is_not_stored_is_computed_and_saved(side):
    one = request("one", 14)
    plan = run(side, one, [7, 3, 9, 5])
    assert plan.loads == []
    assert saved(plan) == {"one": [7, 3, 9]}  # the fourth block is not full
    assert plan.saves[0].hashes == [b"p0", b"p1", b"p2"]


def test_a_stored_prefix_is_loaded_and_only_the_rest_is_saved(side, store):
    one = request("one", 14)
    publish(store, one, [0, 1])
    assert side.matched_tokens(one, 0)[0] == 8
    plan = run(side, one, [7, 3, 9, 5])
    (load,) = plan.loads
    assert (load.hashes, load.blocks) == ([b"p0", b"p1"], [7, 3])
    assert saved(plan) == {"one": [9]}


def test_matching_may_be_repeated_and_tells_the_same(side, store):
    one = request("one", 14)
    publish(store, one, [0, 1])
    assert [side.matched_tokens(one, 0)[0] for _ in range(3)] == [8, 8, 8]


def test_a_request_that_waits_for_room_is_not_looked_up_in_every_step(side, store, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(scheduler, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    one = request("one", 14)
    publish(store, one, [0, 1])
    assert [side.matched_tokens(one, 0)[0] for _ in range(5)] == [8] * 5
    asked = store.looked_up
    publish(store, one, [2])
    assert side.matched_tokens(one, 4)[0] == 8  # the engine has found a block itself
    assert side.matched_tokens(one, 0)[0] == 12
    store.known.clear()
    assert side.matched_tokens(one, 0)[0] == 12
    assert store.looked_up == asked + 2 + 3
    clock[0] += 1
    assert side.matched_tokens(one, 0)[0] == 0


def test_a_reset_makes_answers_that_are_remembered_void(side, store):
    one = request("one", 14)
    publish(store, one, [0, 1])
    side.matched_tokens(one, 0)
    store.known.clear()  # as names that nobody knows do
    side.forget()
    assert side.matched_tokens(one, 0)[0] == 0


def test_a_prompt_that_is_stored_whole_leaves_a_block_to_compute(side, store):
    """The engine needs a token to start from; what was found is told in full."""
    one = request("one", 12)
    publish(store, one, [0, 1, 2])
    assert side.matched_tokens(one, 0)[0] == 8
    assert side.admit(one, 8) == (3, 0, 3)


def test_blocks_that_the_engine_has_are_not_loaded(side, store):
    one = request("one", 17)
    publish(store, one, [0, 1, 2])
    assert side.matched_tokens(one, 4)[0] == 8
    plan = run(side, one, [7, 3, 9, 5, 6], computed_locally=4)
    assert plan.loads[0].blocks == [3, 9]
    assert saved(plan) == {"one": [5]}


def test_local_blocks_that_are_not_stored_are_saved(side, store):
    one = request("one", 17)
    publish(store, one, [1])
    plan = run(side, one, [7, 3, 9, 5, 6], computed_locally=8)
    assert saved(plan) == {"one": [7, 9, 5]}


def test_a_hit_needs_the_blocks_of_every_rank(store):
    ranks = ("tp0", "tp1")
    side, one = attached(store, ranks), request("one", 17)
    publish(store, one, [0, 1, 2], ranks[:1])
    publish(store, one, [0], ranks[1:])
    assert side.matched_tokens(one, 0)[0] == 4
    assert saved(run(side, one, [7, 3, 9, 5, 6])) == {"one": [3, 9, 5]}


def test_the_stages_of_a_pipeline_may_have_stores_of_their_own():
    stores = [Ids(), Ids()]
    side, one = SchedulerSide(SIZE, hashes), request("one", 17)
    side.attach([Part(s, Namer("space", f"layers{i}")) for i, s in enumerate(stores)])
    for i, (store, blocks) in enumerate(zip(stores, ([0, 1], [0, 1, 2]), strict=True)):
        store.known.update(Namer("space", f"layers{i}")(hashes(one)[b] for b in blocks))
    assert side.matched_tokens(one, 0)[0] == 8
    assert saved(run(side, one, [7, 3, 9, 5, 6])) == {"one": [9, 5]}
    assert side.detach() == stores


def test_a_long_prompt_is_saved_chunk_by_chunk(side):
    one = request("one", 14)
    side.matched_tokens(one, 0)
    side.admit(one, 0)
    first = side.plan(step(new=[(one, [7, 3], 0, 6)]))
    second = side.plan(step(cached=[(one, [9, 5], 6, 8)]))
    assert (saved(first), saved(second)) == ({"one": [7]}, {"one": [3, 9]})


def test_blocks_that_generation_fills_are_saved_once_their_tokens_are_known(side):
    one = request("one", 7)
    run(side, one, [7, 3])
    assert side.plan(step(cached=[(one, None, 7, 1)])).saves == []  # the token is not known yet
    one.num_tokens = 8
    assert saved(side.plan(step(cached=[(one, None, 7, 1)]))) == {"one": [3]}


def test_what_two_requests_share_is_saved_once(side):
    one, two = request("one", 9), request("two", 9)
    for made in (one, two):
        side.matched_tokens(made, 0)
        side.admit(made, 0)
    plan = side.plan(step(new=[(one, [1, 2, 3], 0, 9), (two, [4, 5, 6], 0, 9)]))
    assert saved(plan) == {"one": [1, 2]}


def test_after_a_failed_load_what_is_gone_is_saved_again(side, store):
    """The engine goes back to the block that failed, and computes from there."""
    one = request("one", 14)
    publish(store, one, [0, 1, 2])
    plan = run(side, one, [7, 3, 9, 5])
    assert saved(plan) == {}
    store.known -= set(Namer("space", "tp0")([b"p1"]))
    again = side.plan(step(cached=[(one, None, 4, 10)]))
    assert again.loads == []
    assert saved(again) == {"one": [3]}
    assert again.saves[0].computed_from == 1
    assert again.saves[0].table == [7, 3, 9]


def test_a_preempted_request_is_matched_and_loaded_anew(side, store):
    one = request("one", 14)
    run(side, one, [7, 3, 9, 5])
    publish(store, one, [0, 1, 2])
    assert side.matched_tokens(one, 0)[0] == 12
    side.admit(one, 12)
    plan = side.plan(step(cached=[(one, [2, 4, 6, 8], 12, 2)], resumed=[one]))
    assert plan.loads[0].blocks == [2, 4, 6]
    assert saved(plan) == {}


def test_what_was_found_is_told_once_for_each_admission(side, store):
    one = request("one", 17)
    publish(store, one, [0, 1, 2])
    side.matched_tokens(one, 4)
    assert side.admit(one, 8) == (4, 1, 2)
    assert side.admit(one, 0) is None


def test_a_request_is_counted_once_unless_a_load_of_its_has_failed(store):
    metrics = Collector(Selection())
    side = SchedulerSide(SIZE, hashes, metrics=metrics)
    side.attach([Part(store, Namer("space", "tp0"))])
    one = request("one", 14)
    run(side, one, [7, 3, 9, 5])
    publish(store, one, [0, 1, 2])
    for found in (12, 0):
        side.plan(step(preempted=[one]))
        assert side.matched_tokens(one, 0)[0] == found
        side.admit(one, found)
        side.plan(step(cached=[(one, [2, 4, 6, 8], found, 14 - found)], resumed=[one]))
        side.load_failed({4})
    counters = metrics.take()["counters"]
    assert counters["lookup_requests_total"] == {"": 2}
    assert counters["prompt_blocks_total"] == {"": 6}
    assert counters["missed_blocks_total"] == {"absent": 3, "load_failed": 3}
    assert "hit_blocks_total" not in counters


def test_a_request_that_must_not_read_the_cache_finds_nothing(side, store):
    one = request("one", 14, skip_reading_prefix_cache=True)
    publish(store, one, [0, 1])
    assert side.matched_tokens(one, 0)[0] == 0


def test_a_prompt_of_less_than_a_block_asks_the_store_nothing(side, store):
    assert side.matched_tokens(request("one", 3), 0)[0] == 0
    assert store.looked_up == 0


def test_a_store_that_fails_is_a_store_without_the_blocks():
    side = attached(Broken())
    one = request("one", 14)
    assert side.matched_tokens(one, 0)[0] == 0
    assert saved(run(side, one, [7, 3, 9, 5])) == {"one": [7, 3, 9]}


def test_finished_requests_leave_nothing(side):
    one = request("one", 14)
    run(side, one, [7, 3, 9, 5])
    side.finished("one")
    side.finished("never seen")
    assert side.plan(step(cached=[(one, None, 14, 1)])).saves == []
    assert not side._tracked
    assert not side._looked


def test_without_a_store_nothing_is_found_or_saved():
    side = SchedulerSide(SIZE, hashes)
    one = request("one", 14)
    plan = run(side, one, [7, 3, 9, 5])
    assert (plan.loads, saved(plan)) == ([], {})


def test_what_is_computed_before_there_is_a_store_is_saved_once_there_is_one(store):
    side, one = SchedulerSide(SIZE, hashes), request("one", 14)
    side.matched_tokens(one, 0)
    side.admit(one, 0)
    assert saved(side.plan(step(new=[(one, [7, 3, 9, 5], 0, 8)]))) == {}
    side.attach([Part(store, Namer("space", "tp0"))])
    assert saved(side.plan(step(cached=[(one, None, 8, 1)]))) == {"one": [7, 3]}
    assert saved(side.plan(step(cached=[(one, None, 9, 5)]))) == {"one": [9]}


def outside(side, made, blocks, computed_locally=0):
    """Admit a request that loads outside the batch; return what the next step does for it."""
    tokens, waits = side.matched_tokens(made, computed_locally)
    assert waits
    side.admit(made, tokens, blocks)
    plan = side.plan(step())
    assert (plan.loads, plan.saves) == ([], [])
    return plan.background


def test_a_request_outside_the_batch_loads_before_it_is_scheduled(store):
    side, one = attached(store, async_load=True), request("one", 17)
    publish(store, one, [0, 1, 2])
    (load,) = outside(side, one, [7, 3, 9, 5, 6], computed_locally=4)
    assert (load.request_id, load.hashes, load.blocks) == ("one", [b"p1", b"p2"], [3, 9])
    assert side.plan(step()).background == []
    one.num_computed_tokens = 12
    assert side.admit(one, 0) is None
    plan = side.plan(step(new=[(one, [7, 3, 9, 5, 6], 12, 5)]))
    assert (plan.loads, saved(plan)) == ([], {"one": [5]})


def test_blocks_that_failed_outside_the_batch_are_computed_and_saved_again(store):
    side, one = attached(store, async_load=True), request("one", 17)
    publish(store, one, [0, 1, 2])
    outside(side, one, [7, 3, 9, 5, 6])
    side.load_failed({3})
    store.known -= set(Namer("space", "tp0")([b"p1", b"p2"]))
    one.num_computed_tokens = 4
    side.admit(one, 0)
    plan = side.plan(step(new=[(one, [7, 3, 9, 5, 6], 4, 13)]))
    assert saved(plan) == {"one": [3, 9, 5]}


def test_what_could_not_be_loaded_is_not_tried_again_for_the_same_request(store):
    """A store that fails each time would keep the request waiting for ever."""
    side, one = attached(store, async_load=True), request("one", 17)
    publish(store, one, [0, 1, 2])
    outside(side, one, [7, 3, 9, 5, 6])
    side.load_failed({7})
    assert side.matched_tokens(one, 0) == (0, False)
    assert side.matched_tokens(request("two", 17), 0)[0] == 12
    side.finished("one")
    assert side.matched_tokens(one, 0)[0] == 12


def test_only_what_is_loaded_waits_outside_the_batch(store):
    side = attached(store, async_load=True)
    assert side.matched_tokens(request("one", 17), 0) == (0, False)


@pytest.mark.parametrize(("local", "tokens"), [(0, 8), (4, 4), (8, 0), (12, 0)])
def test_hit_ratio_limits_what_a_prompt_finds_in_all(store, local, tokens):
    side, one = attached(store, hit_ratio=0.5), request("one", 20)
    publish(store, one, range(5))
    assert side.matched_tokens(one, local)[0] == tokens
    assert side.admit(one, tokens) == (5, local // SIZE, tokens // SIZE)


def test_hit_ratio_is_what_was_written_and_not_what_binary_makes_of_it(store):
    side, one = attached(store, hit_ratio=0.57), request("one", 400)
    publish(store, one, range(100))
    assert side.matched_tokens(one, 0)[0] == 228


def test_a_preempted_request_is_not_to_blame_for_what_fails_in_its_former_blocks(side, store):
    one, two = request("one", 14), request("two", 9, "q")
    publish(store, two, [0, 1])
    run(side, one, [7, 3, 9, 5])
    side.plan(step(preempted=[one]))
    run(side, two, [3, 9, 4])
    assert side.load_failed({3}) >= {3, 9, 5}  # an older step may have told of it
    publish(store, one, [0, 1, 2])
    assert side.matched_tokens(one, 0)[0] == 12


def test_prompts_below_the_threshold_are_neither_loaded_nor_saved(store):
    side, one, two = (
        attached(store, persist_token_threshold=15),
        request("one", 14),
        request("two", 15),
    )
    publish(store, one, [0, 1])
    assert saved(run(side, one, [7, 3, 9, 5])) == {}
    assert side.matched_tokens(one, 0)[0] == 0
    assert side.matched_tokens(two, 0)[0] == 8
    assert store.looked_up > 0


def test_hits_below_their_threshold_are_not_loaded(store):
    side, one = attached(store, load_tokens_threshold=9), request("one", 17)
    publish(store, one, [0, 1])
    assert side.matched_tokens(one, 0)[0] == 0
    publish(store, one, [2])
    assert side.matched_tokens(request("two", 17), 0)[0] == 12


def test_a_request_holds_its_blocks_as_long_as_something_of_it_is_being_saved(store):
    side = attached(store, async_save=True)
    one, two = request("one", 14), request("two", 14)
    (save,) = run(side, one, [7, 3, 9, 5]).saves
    run(side, two, [1, 2, 4, 6])  # the same blocks: they are on their way
    assert (side.finished("one"), side.finished("two")) == (True, False)
    assert side.holds_blocks
    assert side.plan(step()).leaving == ["one"]
    assert side.plan(step()).leaving == []
    side.ended({save.number: 1})
    side.saved({"one"})
    assert not side.holds_blocks


def test_a_request_of_which_all_is_saved_holds_nothing(store):
    side, one = attached(store, async_save=True), request("one", 14)
    (save,) = run(side, one, [7, 3, 9, 5]).saves
    side.ended({save.number: 1})
    assert not side.finished("one")


def test_a_save_has_ended_when_every_worker_says_so(store):
    side, one = SchedulerSide(SIZE, hashes, Policy(async_save=True)), request("one", 14)
    side.attach([Part(store, Namer("space", f"tp{i}")) for i in range(2)], workers=2)
    (save,) = run(side, one, [7, 3, 9, 5]).saves
    side.ended({save.number: 1, 999: 2})
    assert "one" in side._savers
    side.ended({save.number: 1})
    assert not side.finished("one")
    assert not side._saving


def test_a_preempted_request_holds_nothing_more(store):
    side, one = attached(store, async_save=True), request("one", 14)
    (save,) = run(side, one, [7, 3, 9, 5]).saves
    assert side.plan(step(preempted=[one])).preempted == ["one"]
    side.ended({save.number: 1})
    assert not side.finished("one")


def test_a_request_that_ends_between_its_preemption_and_the_next_step_is_let_go(store):
    """Engines that are reset preempt outside of their steps."""
    side, one = attached(store, async_save=True), request("one", 14)
    run(side, one, [7, 3, 9, 5])
    assert side.finished("one")
    plan = side.plan(step(preempted=[one]))
    assert (plan.preempted, plan.leaving) == (["one"], ["one"])


def test_what_was_computed_from_a_failed_block_is_told_though_its_request_has_ended(store):
    side = attached(store)
    one, two = request("one", 17), request("two", 9, "q")
    publish(store, one, [0, 1, 2])
    run(side, one, [7, 3, 9, 5, 6])
    run(side, two, [1, 2, 4])
    side.finished("one")
    assert side.load_failed({3}) == {3, 9, 5, 6}


def test_all_that_share_a_failed_block_compute_it_for_themselves(side, store):
    """The engine sends back the first of them alone, here the second one's count is as it was."""
    one, two, other = request("one", 18), request("two", 18), request("other", 9, "q")
    publish(store, one, [0, 1, 2, 3])
    run(side, one, [10, 11, 12, 13, 14])
    run(side, two, [10, 11, 12, 13, 20], computed_locally=16)
    run(side, other, [30, 31, 32])
    one.num_computed_tokens, two.num_computed_tokens, other.num_computed_tokens = 8, 16, 9
    assert side.load_failed({12}) == {12, 13, 14, 20}
    assert [each.num_computed_tokens for each in (one, two, other)] == [8, 8, 9]
    side.finished("one")
    (save,) = side.plan(step(cached=[(two, None, 8, 10)])).saves
    assert (save.computed_from, save.table) == (2, [10, 11, 12, 13])


def test_what_could_not_be_loaded_is_saved_by_the_next_one_though_its_own_request_has_ended(
    side, store
):
    one, two, three = (request(name, 14) for name in ("one", "two", "three"))
    run(side, one, [7, 3, 9, 5])  # so that it was saved just now
    publish(store, one, [0, 1, 2])
    side.finished("one")
    run(side, two, [17, 13, 19, 15])
    side.load_failed({13})
    side.finished("two")
    store.known -= set(Namer("space", "tp0")([b"p1"]))
    assert saved(run(side, three, [27, 23, 29, 25])) == {"three": [23]}


def test_what_has_not_been_computed_yet_does_not_count_as_computed_after_a_failure(side, store):
    one = request("one", 18)
    publish(store, one, [0, 1, 2, 3])
    run(side, one, [10, 11, 12, 13, 14])
    one.num_computed_tokens = 4  # the engine has gone back further
    side.load_failed({12})
    assert one.num_computed_tokens == 4


def test_how_far_a_request_outside_the_batch_is_stays_with_the_engine(store):
    side, one = attached(store, async_load=True), request("one", 17)
    publish(store, one, [0, 1, 2])
    outside(side, one, [7, 3, 9, 5, 6], computed_locally=4)
    one.num_computed_tokens = 12
    side.load_failed({9})  # its table has the loaded blocks alone, without those before them
    assert one.num_computed_tokens == 12


@pytest.mark.parametrize("role", ["loads", "saves"])
def test_an_engine_may_load_or_save_alone(store, role):
    side = attached(store, **{name: name == role for name in ("loads", "saves")})
    one = request("one", 14)
    publish(store, one, [0])
    assert side.matched_tokens(one, 0)[0] == (4 if role == "loads" else 0)
    assert saved(run(side, one, [7, 3, 9, 5])) == ({} if role == "loads" else {"one": [3, 9]})


def test_a_reset_reaches_requests_that_wait_outside_the_batch(store):
    side, one = attached(store, async_load=True), request("one", 17)
    publish(store, one, [0, 1])
    outside(side, one, [7, 3, 9, 5, 6])
    side.forget()
    one.num_computed_tokens = 8
    side.admit(one, 0)
    assert saved(side.plan(step(new=[(one, [7, 3, 9, 5, 6], 8, 9)]))) == {}


def test_a_reset_reaches_a_session_that_is_continued_after_it(side):
    one = request("one", 8)
    assert saved(run(side, one, [7, 3, 9])) == {"one": [7, 3]}
    side.forget()
    one.prefix, one.num_tokens, one.num_computed_tokens = "q", 12, 8  # all its names are others
    side.admit(one, 0)
    assert saved(side.plan(step(new=[(one, [7, 3, 9, 5], 8, 4)]))) == {}


def test_a_request_that_is_preempted_by_a_reset_is_computed_anew_and_saved(side):
    one = request("one", 9)
    run(side, one, [7, 3, 9])
    side.forget()
    one.prefix = "q"
    side.plan(step(preempted=[one]))
    side.matched_tokens(one, 0)
    side.admit(one, 0)
    again = side.plan(step(cached=[(one, [1, 2, 4], 0, 9)], resumed=[one]))
    assert saved(again) == {"one": [1, 2]}


def test_a_request_that_ends_while_it_receives_is_let_go_of_by_that(store):
    side, one = attached(store, async_load=True, async_save=True), request("one", 17)
    publish(store, one, [0, 1, 2])
    outside(side, one, [7, 3, 9, 5, 6])
    assert not side.finished("one")


def test_where_a_hit_lies_is_told_block_by_block(store):
    side, one = attached(store), request("one", 17)
    publish(store, one, [0, 1, 2])
    tokens, _ = side.matched_tokens(one, 4)
    side.admit(one, tokens)
    assert side.hit_tiers("one") == [2, 2]
    assert side.hit_tiers("never seen") == []


def test_what_is_computed_already_is_not_saved_after_a_reset(side):
    one = request("one", 14)
    side.matched_tokens(one, 0)
    side.admit(one, 0)
    side.plan(step(new=[(one, [7, 3], 0, 6)]))
    side.forget()
    assert saved(side.plan(step(cached=[(one, [9, 5], 6, 8)]))) == {}
    assert saved(run(side, request("two", 9), [1, 2, 4])) == {"two": [1, 2]}


def test_counting_alone_loads_and_saves_nothing_and_remembers_what_it_would_save(store):
    kept = []
    side = SchedulerSide(SIZE, hashes, Policy(lite=True))
    side.attach([Part(store, Namer("space", "lite"))], kept.extend)
    one = request("one", 14)
    store.known.update(Namer("space", "lite")([b"p0"]))
    assert side.matched_tokens(one, 0) == (0, False)
    assert side.admit(one, 0) == (3, 0, 1)
    plan = side.plan(step(new=[(one, [7, 3, 9, 5], 0, 14)]))
    assert (plan.loads, plan.saves, kept) == ([], [], [b"p1", b"p2"])
