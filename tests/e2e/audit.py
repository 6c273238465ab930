"""UCMConnector with a witness: what is loaded must be, byte for byte, what was saved.

AUDIT in the environment names a file that gets one line for each shard: what happened (saved,
changed: it was altered while it was being saved, loaded), its block, its place, a hash of its
bytes. Without AUDIT nothing is hashed. Seconds of each method are counted, CPU and in all, and what
was found.
"""

import ctypes
import hashlib
import os
import time

from ucm.integration.vllm.ucm_connector import UCMConnector

METHODS = (
    "start_load_kv",
    "wait_for_layer_load",
    "save_kv_layer",
    "wait_for_save",
    "handle_preemptions",
    "get_finished",
    "get_block_ids_with_load_errors",
    "get_num_new_matched_tokens",
    "update_state_after_alloc",
    "build_connector_meta",
    "update_connector_output",
    "request_finished_all_groups",
)
_spent: dict[str, float] = {}
_lasted: dict[str, float] = {}
_sources: dict[str, int] = {}
_told: list[str] = []


def take_spent():
    """Begin anew; return the seconds by method, of CPU and in all, tokens by source, and events."""
    counted = {"seconds": _spent, "lasted": _lasted, "tokens": _sources}
    now = {**{name: dict(each) for name, each in counted.items()}, "events": list(_told)}
    for each in (*counted.values(), _told):
        each.clear()
    return now


def _counted(name, function):
    def call(*args, **kwargs):
        began = time.perf_counter()
        time.thread_time()  # a model has swept the caches: what reading the clock costs is not ours
        start = time.thread_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent = time.thread_time() - start
            _spent[name] = _spent.get(name, 0.0) + spent
            _lasted[name] = _lasted.get(name, 0.0) + time.perf_counter() - began

    return call


class Witness:
    """A store that hashes what passes. Loads are hashed where they are waited for."""

    def __init__(self, store, path, segment):
        self._store, self._segment = store, segment
        self._file = open(path, "a", buffering=1)  # noqa: SIM115
        self._moving = {}

    def __getattr__(self, name):
        return getattr(self._store, name)

    def _hash(self, segments):
        hashed = hashlib.blake2b(digest_size=12)
        for address in segments:
            hashed.update(ctypes.string_at(int(address), self._segment))
        return hashed.hexdigest()

    def _write(self, what, rows, sums):
        for block, shard, hashed in zip(rows[0], rows[1], sums, strict=True):
            if hashed:
                self._file.write(f"{what} {bytes(block).hex()} {shard} {hashed}\n")

    def dump_data(self, ids, shards, addresses, **hints):
        rows = (ids, shards, addresses)
        sums = [self._hash(row) for row in addresses]
        self._write("saved", rows, sums)
        task = self._store.dump_data(*rows, **hints)
        self._moving[id(task)] = (task, rows, sums)
        return task

    def load_data(self, ids, shards, addresses, **hints):
        rows = (ids, shards, addresses)
        tiers = self._store.tiers([bytes(block) for block in ids])
        self._file.write("tiers " + " ".join(map(str, tiers)) + "\n")
        task = self._store.load_data(*rows, **hints)
        self._moving[id(task)] = (task, rows, None)
        return task

    def wait(self, task, *args, **kwargs):
        try:
            return self._store.wait(task, *args, **kwargs)
        finally:
            if task.done() and id(task) in self._moving:
                self._ended(*self._moving.pop(id(task)))

    def _ended(self, task, rows, before):
        now = [self._hash(row) for row in rows[2]]
        if before is None:
            good = [not each.status for each in task.results]
            self._write("loaded", rows, [g and h for g, h in zip(good, now, strict=True)])
        else:
            self._write("changed", rows, [a != b and b for a, b in zip(before, now, strict=True)])


class AuditedConnector(UCMConnector):
    for _name in METHODS:
        locals()[_name] = _counted(_name, getattr(UCMConnector, _name))

    def get_external_cache_hit_sources(self, request, num_external_tokens):
        found = super().get_external_cache_hit_sources(request, num_external_tokens)
        for source, tokens in found.items():
            _sources[source.name] = _sources.get(source.name, 0) + tokens
        return found

    def take_events(self):
        events = list(super().take_events())
        for event in events:
            _told.extend(f"{event.medium} {len(event.token_ids)}" for _ in event.block_hashes)
        return events

    def _open(self, name, sizes, lookup_only):
        store = super()._open(name, sizes, lookup_only)
        path = os.environ.get("AUDIT")
        if not path:
            for method in () if lookup_only else ("dump_data", "load_data", "wait"):
                setattr(store, method, _counted(f"of that {method}", getattr(store, method)))
            return store
        if lookup_only:
            return store
        return Witness(store, path, sizes["tensor_size"])
