"""What cache_peers.py measured, as Markdown tables and as the bars that Cache has to pass."""

import statistics

import peer_tables
from peer_tables import GIB, MIB, median_ratio, samples, speed_ratios, spread, table


def names(figures):
    return ["ours", *figures["rounds"]]


def size_of(figures, name, operation):
    return samples(figures, name, operation, "bytes")[0]


def speeds(figures, name, operation):
    size = size_of(figures, name, operation)
    return [size / seconds / 1e9 for seconds in samples(figures, name, operation, "seconds")]


def costs(figures, name, operation, key="cpu_seconds"):
    """CPU seconds per GiB."""
    pairs = figures["rounds"] if name == "ours" else {name: figures["rounds"][name]}
    side = "ours" if name == "ours" else "other"
    found = [pair[side][operation] for rounds in pairs.values() for pair in rounds]
    return [facts[key] / (facts["bytes"] / GIB) for facts in found if key in facts]


def moved_row(figures, name, operation, label, ours="ours"):
    ratios = "" if name == "ours" else spread(speed_ratios(figures, name, operation))
    wrong = (
        0
        if name == "ours"
        else sum(pair["other"][operation].get("wrong", False) for pair in figures["rounds"][name])
    )
    return [
        label,
        (ours if name == "ours" else name) + (f", {wrong} rounds wrong" if wrong else ""),
        spread(speeds(figures, name, operation)),
        ratios,
        spread(costs(figures, name, operation), 3),
    ]


def transfers(result):
    parts = []
    for case, figures in result["transfers"].items():
        block, shard, blocks = figures["shape"]
        cut = "one shard" if block == shard else f"{block // shard} shards"
        parts.append(
            f"### Cache, blocks of {case}\n\n"
            f"A round: {blocks} blocks of {block // 1024:,} KiB in {cut}.\n"
        )
        for operation in ("load", "dump"):
            rows = []
            title = "hot load" if operation == "load" else "dump until accepted"
            columns = [f"{title}, batches of", "who", "GB/s", "ours / this", "CPU s/GiB"]
            for batch, rounds in figures[operation].items():
                batched = {"rounds": rounds}
                for name in names(batched):
                    row = moved_row(batched, name, operation, batch)
                    if operation == "dump":
                        stored = costs(batched, name, operation, "stored_cpu_seconds")
                        row.append(spread(stored, 3) if stored else "-")
                    rows.append(row)
            parts.append(table(columns + ["until stored"] * (operation == "dump"), rows))
    return parts


def single(result):
    rows = []
    for size, figures in result["single"].items():
        for name in names(figures):
            micros = [s * 1e6 for s in samples(figures, name, "load", "seconds")]
            cpu = [s * 1e6 for s in samples(figures, name, "load", "cpu_seconds")]
            ratios = "" if name == "ours" else spread(speed_ratios(figures, name, "load"))
            rows.append([size, name, spread(micros, 1), ratios, spread(cpu, 1)])
    columns = ["one hot block", "who", "us a call", "ours / this", "CPU us"]
    text = "### What a call costs\n\nThe median call of a round; *ours / this* is of speeds.\n"
    return [text, table(columns, rows)]


def cold(result):
    figures, rows = result["cold"], []
    block, shard, blocks = figures["shape"]
    cut = f"{blocks} blocks of {block // shard} shards x {shard // 1024} KiB"
    for name in names(figures):
        row = moved_row(figures, name, "load", cut, "ours, Cache over Posix")
        if name != "memcpy":
            read = statistics.median(samples(figures, name, "load", "device_bytes"))
            row.append(f"{read / (block * blocks):.2f}")
        rows.append(row if name != "memcpy" else [*row, "-"])
    columns = ["cold load, one task", "who", "GB/s", "ours / this", "CPU s/GiB", "read"]
    text = (
        "### Cold loads\n\nPosix alone loads the same bytes as whole blocks, in one shard each. "
        "Read is what came from the device, in copies.\n"
    )
    return [text, table(columns, rows)]


def lookups(result):
    figures = result["lookup"]
    rows = [
        [name, spread([s * 1e6 for s in spans], 1)] for name, spans in figures["seconds"].items()
    ]
    text = f"### Lookup in memory\n\n{figures['asked']:,} blocks, all cached, in one call.\n"
    return [text, table(["who, which call, ids in", "us"], rows)]


def copies_read(figures, loads, key):
    """Bytes from below in one round, as a multiple of what was asked for; None if not known."""
    block, _, blocks = figures["shape"]
    if any(key not in load for load in loads):
        return None
    return sum(load[key] for load in loads) / (block * blocks)


def shared_facts(figures, who):
    """Return medians over the rounds; memory is that of the first, in an empty cache."""
    block, _, blocks = figures["shape"]
    rounds = figures[who]["rounds"]
    facts = {"seconds": statistics.median(r["seconds"] for r in rounds)}
    for key in ("read", "device_bytes"):
        found = [copies_read(figures, r["loads"], key) for r in rounds]
        facts[key] = None if None in found else statistics.median(found)
    facts["memory"] = rounds[0]["memory"] / (block * blocks)
    facts["shm"] = rounds[0]["shm"] / (block * blocks)
    cpu = [sum(load["cpu_seconds"] for load in r["loads"]) for r in rounds]
    facts["cpu"] = statistics.median(cpu) / (block * blocks * figures[who]["processes"] / GIB)
    facts["wrong"] = sum(r["wrong"] for r in rounds)
    return facts


def shared(result):
    figures, rows = result["shared"], []
    block, _, blocks = figures["shape"]
    for who in (name for name in figures if name != "shape"):
        facts, processes = shared_facts(figures, who), figures[who]["processes"]
        rate = processes * block * blocks / facts["seconds"] / 1e9
        read = "-" if facts["read"] is None else f"{facts['read']:.2f}"
        multiples = [f"{facts[key]:.2f}" for key in ("device_bytes", "memory", "shm")]
        loads = processes * len(figures[who]["rounds"])
        rows.append([who, processes, read, *multiples, f"{rate:.2f}", f"{facts['cpu']:.3f}"])
        rows[-1].append(f"{facts['wrong']} of {loads}")
    columns = ["who", "processes", "read below", "from the device", "memory", "/dev/shm"]
    text = (
        "### Processes that load the same\n\nAt once, with one `unique_id`, "
        f"{block * blocks // MIB} MiB that no cache has. Multiples of one copy; memory is what "
        "it grew by: of the processes, shared pages counted once, and of segments in /dev/shm.\n"
    )
    return [text, table([*columns, "GB/s together", "CPU s/GiB", "wrong loads"], rows)]


def percentile(spans, part):
    spans = sorted(spans)
    return spans[min(len(spans) - 1, int(part * len(spans)))]


def window_ratios(figures, part, what="load"):
    """Return how many times as long loads took as memcpy did, window by window.

    what: "hot" are the loads that found their block in the cache.
    """
    return [
        percentile(window[what], part) / percentile(window["copy"], part)
        for window in figures["windows"]
        if window[what]
    ]


def paced(result):
    rows = []
    for where, figures in result["paced"].items():
        asked = sum(len(window["load"]) for window in figures["windows"])
        for what, label in (("load", "ours"), ("hot", "ours, hits"), ("copy", "memcpy")):
            spans = [span for window in figures["windows"] for span in window[what]]
            on_core = [s for w in figures["windows"] for s in w.get("on_core", {}).get(what, ())]
            cells, alone, ratios = ["-", "-", "-"], ["", ""], ["", ""]
            if spans:
                cells[:2] = [f"{percentile(spans, part) * 1e6:.0f}" for part in (0.5, 0.99)]
            if on_core:
                cells[2] = f"{percentile(on_core, 0.99) * 1e6:.0f}"
            if what in figures["alone"]:
                once = figures["alone"][what]
                alone = [f"{percentile(once, part) * 1e6:.0f}" for part in (0.5, 0.99)]
            if spans and what != "copy":
                ratios = [spread(window_ratios(figures, part, what)) for part in (0.5, 0.99)]
            calls = f"{len(spans)} of {asked}" if what == "hot" else len(spans)
            stream = f"{figures['stream']['bytes_per_second'] / 1e9:.2f}"
            rows.append([where, stream, label, calls, *cells, *ratios, *alone])
    columns = ["dumps of", "GB/s", "who", "calls", "p50 us", "p99 us", "p99 us on a core"]
    text = (
        "### Paced loads beside dumps\n\nOne hot block of 1 MiB at a time. Ratios are of times, "
        "window by window; the percentiles are of all windows. On a core: without what the thread "
        "waited for one, as the kernel counts it. Alone is without dumps. Hits are the loads whose "
        "block the dumps had not pushed out.\n"
    )
    ratios = ["p50, ours / memcpy", "p99, ours / memcpy", "p50 alone", "p99 alone"]
    return [text, table([*columns, *ratios], rows)]


def transfer_bars(result):
    for case, figures in result.get("transfers", {}).items():
        for operation in ("load", "dump"):
            for batch, rounds in figures[operation].items():
                wanted = {"memcpy": 0.9, "reference": 1.0, "lmcache": 1.0}
                for name in rounds:
                    value = median_ratio({"rounds": rounds}, name, operation)
                    what = f"{operation}, {case}, batches of {batch}"
                    yield (
                        what,
                        f"{value:.2f} of {name}",
                        f"{wanted[name]} of {name}",
                        (value >= wanted[name]),
                    )


def call_bars(result):
    for size, figures in result.get("single", {}).items():
        pairs = figures["rounds"]["memcpy"]
        fixed = statistics.median(
            (pair["ours"]["load"]["seconds"] - pair["other"]["load"]["seconds"]) * 1e6
            for pair in pairs
        )
        what = f"one hot block of {size}"
        yield f"{what}, us beyond its memcpy", f"{fixed:.1f}", "at most 15", fixed <= 15
        if size == "1 MiB":
            value = 1 / median_ratio(figures, "memcpy", "load")
            yield f"{what}, time", f"{value:.2f} of memcpy", "at most 1.2", value <= 1.2
    for name, spans in result.get("lookup", {}).get("seconds", {}).items():
        who, call, kind = (part.strip() for part in [*name.split(","), ""][:3])
        if who == "ours":
            most, micros = 30 if kind == "array" else 60, statistics.median(spans) * 1e6
            what = f"{call} of {result['lookup']['asked']:,} cached blocks, {kind}, us"
            yield what, f"{micros:.1f}", f"under {most}", micros < most


def other_bars(result):
    if "cold" in result:
        wanted = {"Posix alone": 0.85, "reference": 2.0}
        for name in (name for name in result["cold"]["rounds"] if name in wanted):
            value = median_ratio(result["cold"], name, "load")
            yield (
                "cold load",
                f"{value:.2f} of {name}",
                f"{wanted[name]} of {name}",
                (value >= wanted[name]),
            )
    if "shared" in result:
        facts = shared_facts(result["shared"], "ours")
        count = result["shared"]["ours"]["processes"]
        # Files have headers; segments an index, and room that is made ahead: no copies.
        for key, what in (("read", "bytes read below"), ("memory", "memory")):
            value = facts[key]
            yield f"{count} processes, {what}", f"{value:.2f}", "1 copy", value < 1.1
    for where, figures in result.get("paced", {}).items():
        for what, label in (("load", "p99"), ("hot", "p99 of hits")):
            ratios = window_ratios(figures, 0.99, what)
            if ratios:
                value = statistics.median(ratios)
                name = f"paced loads beside dumps of {where}, {label}"
                yield name, f"{value:.2f} of memcpy", "at most 1.5", value <= 1.5


def bars(result):
    judged = [*transfer_bars(result), *call_bars(result), *other_bars(result)]
    rows = [[what, got, bar, "yes" if passed else "**no**"] for what, got, bar, passed in judged]
    return ["### Bars of Cache\n", table(["what", "measured", "bar", "passed"], rows)]


def tables(result):
    if "machine" not in result:
        return "Nothing was measured yet.\n"
    parts = [*peer_tables.machine({"Cache": result}), *bars(result)]
    made = {"transfers": transfers, "single": single, "cold": cold, "lookup": lookups}
    for name, part in {**made, "shared": shared, "paced": paced}.items():
        if name in result:
            parts += part(result)
    return "\n".join(parts)
