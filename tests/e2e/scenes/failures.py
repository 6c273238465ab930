"""Whatever fails under a running engine: requests finish, and say what vLLM computes."""

import os
import re
import shutil
import subprocess
import time

from engines import BLOCK, alike, audited, same, transfer
from place import check, say
from scenes.modes import MODES, TWO

LENGTH, BAD = 2000, 5
BLOCKS = LENGTH // BLOCK
TAIL = 100  # tokens, less than a block
RECOMPUTED = "Recovered from KV load failure"


def run(test):
    prepared = Prepared(test)
    found = {}
    for mode in ("default",) if test.small else ("default", "async-load", "direct"):
        found[f"damaged files, {mode}"] = damaged(test, prepared, mode)
    if not test.small:
        found["one of two workers"] = one_of_two(test, prepared)
        found["policy fail"] = policy_fail(test, prepared)
        found["late"] = late(test, prepared)
        found["disk full"] = disk_full(test, prepared)
        found["read-only"] = read_only(test, prepared)
        found["writer killed"] = writer_killed(test, prepared)
    return found


class Prepared:
    """Stored prompts of which some will be damaged, and what is right."""

    def __init__(self, test):
        self.storage = test.folder / "blocks"
        self.storage.mkdir()
        *self.bad, self.other, self.last = test.place.prompts("tiny", 5, LENGTH)
        config = transfer(self.storage)
        with test.engines.start("stores", transfer=config, enable_prefix_caching=True) as engine:
            # Hit up to the block that will be damaged, and the rest computed.
            self.bad_right = [
                engine.run([prompt[: BAD * BLOCK + 1], prompt])[1] for prompt in self.bad
            ]
            good = [self.other, self.last]
            self.cold, self.hot = engine.run(good), engine.run(good)
            self.namespace = engine.namespace()
        self.ids = [test.place.block_ids(p, BLOCK, self.namespace) for p in self.bad]

    def copy(self, test, name):
        """Return a copy of the storage with a block of each bad prompt damaged, and its files."""
        storage = test.folder / f"{name}-blocks"
        shutil.copytree(self.storage, storage)
        files = {path.name: path for path in storage.rglob("*") if path.is_file()}
        found = [[files[i] for i in ids if i in files] for ids in self.ids]
        check(all(len(each) == BLOCKS for each in found), "blocks are missing in the store")
        picked = [each[BAD] for each in found]
        for path, damage in zip(picked, (flip, cut, os.unlink), strict=True):
            damage(path)
        return storage, picked


def flip(path):
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x40]))


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def damaged(test, prepared, mode):
    """A corrupt, a truncated and a missing file; then the whole directory goes."""
    storage, files = prepared.copy(test, mode)
    config = transfer(storage, options=MODES[mode].get("options"))
    with test.engines.start(f"damaged-{mode}", transfer=config) as engine:
        got = engine.run(prepared.bad)
        hits = engine.hits(BLOCKS)
        wanted = [(BLOCKS, 0, BLOCKS), (BLOCKS, 0, BLOCKS), (BLOCKS, 0, BAD)]
        # A request that waits outside comes again after a failed load, and counts again.
        check(set(wanted) <= set(hits), f"{mode}: found {hits}, not {wanted}")
        recomputed = engine.text().count(RECOMPUTED)
        for what, result, right in zip(
            ("corrupt", "truncated", "missing"), got, prepared.bad_right, strict=True
        ):
            same(f"{mode}: a {what} file", result, right)
        check(recomputed, f"{mode}: no failed load was noticed")
        wait_for(lambda: all(path.exists() for path in files), f"{mode}: blocks stored again")
        remove(storage)
        for result, right in zip(
            engine.run([prepared.other, prepared.last]), prepared.cold, strict=True
        ):
            same(f"{mode}: the directory is gone", result, right)
    say(f"failures: {mode}: damaged blocks are computed and stored again; no directory: a miss")
    return {"recoveries": recomputed, "hits": hits}


def one_of_two(test, prepared):
    """A worker finds a damaged block, the other one does not: both compute it again.

    Then the request goes away before that, and vLLM's own cache keeps nothing of it, nor does one
    that shares its blocks build on them; and then both are computed in chunks smaller than a block.
    """
    storage, prompt = test.folder / "half", prepared.other
    storage.mkdir()
    config = transfer(storage, pipeline="Compress|Posix")
    chunks = {"long_prefill_token_threshold": BLOCK // 2}  # where there is more than one request
    with test.engines.start(
        "half", transfer=config, enable_prefix_caching=True, **TWO, **chunks
    ) as engine:
        _, right = engine.run([prompt[: BAD * BLOCK + 1], prompt])
        both = [prompt[: BLOCKS * BLOCK] + tail[:TAIL] for tail in prepared.bad[:2]]
        # With names of their own, that the store knows nothing but what the two share.
        salted = [engine.run([p[: BAD * BLOCK + 1], p], salt=f"half {p[-1]}") for p in both]
        both_right = [each[1] for each in salted]
        bad = test.place.block_ids(prompt, BLOCK, engine.namespace(), rank=1)[BAD]
        known = set()

        def version(path):
            return path.stat().st_ino, path.stat().st_mtime_ns

        def damage():
            """Damage the second worker's part, once it is stored anew."""

            def stored():
                found = [path for path in blocks(storage) if path.name == bad]
                return [path for path in found if version(path) not in known]

            wait_for(stored, "half: the second worker's block in the store")
            (path,) = stored()
            check(engine.reset(), "half: vLLM refuses to reset its cache")
            flip(path)
            known.add(version(path))

        damage()
        (got,) = engine.run([prompt])
        same("half: one worker's block is damaged", got, right)
        check(RECOMPUTED in engine.text(), "half: no failed load was noticed")
        damage()
        (gone,) = engine.together([prompt], abort={0: 1})
        check(gone is None, f"half: an aborted request said {gone}")
        (got,) = engine.run([prompt])
        hits = engine.hits(BLOCKS)
        same("half: after a request that went away", got, right)
        wanted = [(BLOCKS, 0, BLOCKS)] * 2
        check(hits[-3:-1] == wanted and hits[-1][1] <= BAD, f"half: found {hits}")
        shared = [(BLOCKS, 0, BLOCKS), (BLOCKS, BLOCKS, 0)]
        damage()
        gone, got = engine.together(both, abort={0: 1})
        check(gone is None, f"half: an aborted request said {gone}")
        check(engine.hits(BLOCKS)[-2:] == shared, f"half: shared {engine.hits(BLOCKS)}")
        same("half: a block was shared with a request that went away", got, both_right[1])
        damage()
        for got, right in zip(engine.together(both), both_right, strict=True):
            alike("half: a block was shared with a request that is computed slowly", got, right)
        check(engine.hits(BLOCKS)[-2:] == shared, f"half: shared {engine.hits(BLOCKS)}")
        for got, right in zip(engine.run(both), both_right, strict=True):
            alike("half: what is found after that", got, right)
    say("failures: half: one worker's damaged block is computed by all, and in no cache before")
    return {"hits": hits}


def remove(storage):
    """Remove a folder in which somebody may be writing."""

    def gone():
        shutil.rmtree(storage, ignore_errors=True)
        return not storage.exists()

    wait_for(gone, "the removal")


def wait_for(fact, what, seconds=30):
    end = time.monotonic() + seconds
    while not fact():
        check(time.monotonic() < end, f"{what}: not within {seconds} s")
        time.sleep(0.01)


def policy_fail(test, prepared):
    """With vLLM's default policy the request fails, and the engine goes on."""
    storage, _ = prepared.copy(test, "fail")
    config = transfer(storage, kv_load_failure_policy="fail")
    with test.engines.start("policy-fail", transfer=config) as engine:
        (bad, good) = engine.run([prepared.bad[0], prepared.other])
        check(bad["end"] == "error", f"policy fail: the request ended with {bad['end']!r}")
        same("policy fail: the next request", good, prepared.hot[0])
        check('kv_load_failure_policy is "fail"' in engine.text(), "policy fail: no warning")
    say("failures: policy fail: the request fails, the next one is right")
    return {"end": bad["end"]}


def late(test, prepared):
    """What does not come in time is computed, and found again once the disk answers."""
    storage, _ = prepared.copy(test, "late")
    rules = test.folder / "rules"
    rules.write_text("load:hang\n")
    store = {"fault_control": str(rules), "timeout_ms": 500}
    config = transfer(storage, pipeline="Cache|Compress|Fault|Posix", store=store)
    with test.engines.start("late", transfer=config) as engine:
        (got,) = engine.run([prepared.other])
        recomputed = engine.text().count(RECOMPUTED)
        rules.write_text("")
        same("late", got, prepared.cold[0])
        check(recomputed, "late: the load did not fail")

        def found():
            (result,) = engine.run([prepared.last])
            same("no longer late", result, prepared.hot[1])
            return engine.hits(BLOCKS)[-1][2] == BLOCKS

        wait_for(found, "late: a hit once the disk answers again")
    say("failures: late: what does not come in time is computed; later it is found")
    return {"recoveries": recomputed}


def mounted(test, name, what, *options):
    """Call ``what`` with a folder where something small is mounted with these options."""
    if os.geteuid():
        say(f"failures: {name}: SKIPPED, mounting a small file system needs root")
        return "skipped: not root"
    storage = test.folder / name
    storage.mkdir()
    subprocess.run(["mount", *options, storage], check=True)
    try:
        return what(storage)
    finally:
        subprocess.run(["umount", "-l", storage], check=True)


def read_only(test, prepared):
    """A file system that becomes read-only under an engine, as after an error of its disk."""
    image = test.folder / "image"
    with image.open("wb") as file:
        os.truncate(file.fileno(), 32 << 20)
    subprocess.run(["/sbin/mkfs.ext4", "-q", image], check=True)

    def body(storage):
        config = transfer(storage, pipeline="Compress|Posix")
        with test.engines.start("read-only", transfer=config) as engine:
            before = engine.run([prepared.other])
            wait_for(lambda: len(blocks(storage)) >= BLOCKS, "blocks in the store")
            subprocess.run(["mount", "-o", "remount,abort", storage], check=True)
            results = before + engine.run([prepared.last, prepared.other, prepared.last])
            hits = [hit[2] for hit in engine.hits(BLOCKS)]
        check(hits == [0, 0, BLOCKS, 0], f"read-only: found {hits}")
        cold, hot = prepared.cold, prepared.hot
        for got, right in zip(results, (cold[0], cold[1], hot[0], cold[1]), strict=True):
            same("read-only", got, right)
        say("failures: read-only: what is there is found, the rest is computed each time")
        return {"hits": hits}

    return mounted(test, "read-only", body, "-o", "loop", image)


def blocks(storage):
    """Return the files of blocks."""
    return [path for path in storage.rglob("*") if re.fullmatch("[0-9a-f]{32}", path.name)
            and path.is_file()]  # fmt: skip


def disk_full(test, prepared):
    """Half of what is computed has room."""

    def body(storage):
        witnesses = [test.folder / f"{i}-full.audit" for i in range(2)]
        prompts, found = [prepared.other, prepared.last], []
        config = transfer(storage, audited=True)
        for i, witness in enumerate(witnesses):
            with test.engines.start(
                f"full-{i}", transfer=config, environment={"AUDIT": str(witness)}
            ) as engine:
                got = engine.run(prompts)
                hits = engine.hits(BLOCKS)
                found.append(hits)
            compare_whole("disk full", got, hits, prepared)
        check(any(hit[2] < BLOCKS for hit in found[1]), f"the disk was not full: {found}")
        counts = audited(witnesses)
        say(f"failures: disk full: requests finish; a second engine found {found[1]}")
        return {"hits": found, "shards": counts}

    return mounted(test, "full", body, "-t", "tmpfs", "-o", "size=2m", "tmpfs")


def compare_whole(what, got, hits, prepared):
    """Compare texts where nothing or all was found; between that is no reference."""
    for result, hit, cold, hot in zip(got, hits, prepared.cold, prepared.hot, strict=False):
        check(len(result["tokens"]) == 8, f"{what}: a request has no text")
        if hit[2] in (0, BLOCKS):
            same(f"{what}: hit {hit}", result, hot if hit[2] else cold)


def writer_killed(test, prepared):
    """The first engine is killed while it saves; the second one takes over."""
    storage = test.folder / "killed"
    storage.mkdir()
    witnesses = [test.folder / f"{name}-killed.audit" for name in ("first", "second")]
    config = transfer(storage, audited=True)
    prompts = [prepared.other, prepared.last, *test.place.prompts("tiny", 10, LENGTH, skip=20000)]
    with test.engines.start(
        "killed-first", transfer=config, environment={"AUDIT": str(witnesses[0])}
    ) as first:
        saved = set(test.place.block_ids(prompts[1], BLOCK, prepared.namespace))
        first.begin_run(prompts)
        wait_for(lambda: any(path.name in saved for path in storage.rglob("*")), "a block", 120)
        first.kill()
        check(test.left(first.segments), "the killed engine had no segment of shared memory")
        with test.engines.start(
            "killed-second", transfer=config, environment={"AUDIT": str(witnesses[1])}
        ) as second:
            got = second.run(prompts)
            hits = second.hits(BLOCKS)
    compare_whole("writer killed", got, hits, prepared)
    check(any(hit[2] for hit in hits), "nothing of the killed engine was found")
    left = test.left(first.segments | second.segments)
    check(not left, f"left in shared memory after the second engine: {left}")
    counts = audited(witnesses)
    say(f"failures: writer killed: the second engine found {[hit[2] for hit in hits]} blocks")
    return {"hits": hits, "shards": counts}
