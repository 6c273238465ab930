"""What posix_peers.py measured, as Markdown tables and as the bars that Posix has to pass."""

import os
import statistics

GIB, MIB = 1 << 30, 1 << 20
OPERATIONS = ("dump", "load")


def quartiles(values):
    """Return minimum, quartiles and maximum."""
    values = sorted(values)
    if len(values) == 1:
        values *= 2
    first, middle, third = statistics.quantiles(values, n=4, method="inclusive")
    return values[0], first, middle, third, values[-1]


def spread(values, digits=2):
    low, first, middle, third, high = (f"{value:.{digits}f}" for value in quartiles(values))
    return f"{middle} ({low}, {first} to {third}, {high})"


def table(columns, rows):
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def case_bytes(result):
    block, _, blocks = result["shape"]
    return block * blocks


def samples(result, name, operation, key):
    """Return one figure of a side in every round; ours is in the rounds with all others."""
    rounds = result["rounds"]
    if name == "ours":
        return [pair["ours"][operation][key] for pairs in rounds.values() for pair in pairs]
    return [pair["other"][operation][key] for pair in rounds[name]]


def speed_ratios(result, name, operation):
    """Return how many times as fast ours was, pair by pair."""
    pairs = result["rounds"][name]
    return [p["other"][operation]["seconds"] / p["ours"][operation]["seconds"] for p in pairs]


def cpu_ratios(result, name, operation):
    """Return how many times as much time ours took; a round of fio less its start may be none."""
    pairs = [(p["ours"][operation], p["other"][operation]) for p in result["rounds"][name]]
    return [o["cpu_seconds"] / p["cpu_seconds"] for o, p in pairs if p["cpu_seconds"] > 0]


def others(result):
    return [name for name, pairs in result["rounds"].items() if pairs[0]["other"]]


def per_mib(facts, name, size):
    return "-" if facts.get(name) is None else f"{facts[name] / (size / MIB):.2f}"


def threads(facts):
    if "threads" not in facts:
        return "-"
    kernel = facts["kernel_threads"]
    return f"{facts['threads']}" + (f", {kernel} of them the kernel's" if kernel else "")


def from_page_cache(result):
    """Name the sides whose loads did not read the device, so that they are no O_DIRECT loads."""
    size = case_bytes(result)
    loads = {name: facts["load"] for name, facts in result["facts"].items() if "load" in facts}
    return [name for name, load in loads.items() if load.get("device_bytes", size) < 0.99 * size]


def wrong_loads(result):
    """Say which of the others did not give back what was dumped, and how often."""
    counts = {
        name: sum(pair["other"]["load"].get("wrong", False) for pair in result["rounds"][name])
        for name in others(result)
    }
    return [f"{name} in {n} of {len(result['rounds'][name])}" for name, n in counts.items() if n]


def transfer_table(result, operation, engine):
    size, rows = case_bytes(result), []
    for name in ("ours", *others(result)):
        facts = result["facts"].get(name, {}).get(operation, {})
        seconds = samples(result, name, operation, "seconds")
        cpu = samples(result, name, operation, "cpu_seconds")
        rows.append(
            [
                f"ours, {engine}" if name == "ours" else name,
                spread([size / s / 1e9 for s in seconds]),
                "" if name == "ours" else spread(speed_ratios(result, name, operation)),
                spread([c / (size / GIB) for c in cpu], 3),
                per_mib(facts, "system_calls", size),
                per_mib(facts, "sqes", size),
                result["copies"] if name == "ours" else 0,
                threads(facts),
            ]
        )
    columns = [operation, "GB/s", "ours / this", "CPU s/GiB", "system calls/MiB", "SQEs/MiB"]
    return table([*columns, "copies/byte", "threads"], rows)


def transfers(result, engine):
    parts = []
    for case, figures in result.get("transfers", {}).items():
        block, shard, blocks = figures["shape"]
        shards = "in one shard" if block == shard else f"in {block // shard} shards"
        text = (
            f"### Blocks of {case}\n\nA round: {blocks} blocks of {block // 1024:,} KiB {shards}."
        )
        if row := figures["pages_in_a_row"]:
            text += f" Pages of its memory in a row, on average: {row:.1f}."
        if chosen := figures.get("fio_chosen"):
            text += " fio's best: " + "; ".join(f"{k} {v}" for k, v in chosen.items()) + "."
        if cached := from_page_cache(figures):
            text += f" **Loads of {', '.join(cached)} came from the page cache.**"
        if wrong := wrong_loads(figures):
            text += f" **Not all that was dumped came back: {', '.join(wrong)} rounds.**"
        parts.append(text + "\n")
        parts += [transfer_table(figures, name, engine) for name in OPERATIONS]
    return parts


def verification(result):
    figures = result["verification"]
    rows = [
        [f"xxh3 alone, {int(size) >> 10} KiB a piece", f"{cost:.3f}", "", ""]
        for size, cost in figures["checksum_ns_per_byte"].items()
    ]
    for case, pairs in figures["cases"].items():
        size = pairs["shape"][0] * pairs["shape"][2]
        for name in OPERATIONS:
            with_checks = [p["ours"][name]["cpu_seconds"] / size * 1e9 for p in pairs["bare"]]
            without = [p["other"][name]["cpu_seconds"] / size * 1e9 for p in pairs["bare"]]
            cost = [a - b for a, b in zip(with_checks, without, strict=True)]
            rows.append(
                [f"{name}, {case}", spread(cost, 3), spread(with_checks, 3), spread(without, 3)]
            )
    text = "### Verification\n\nCPU nanoseconds per byte.\n"
    return [text, table(["what", "cost", "with checks", "without"], rows)]


def lookups(result):
    rows = []
    for stored, figures in result["lookup"].items():
        for name, seconds in figures["seconds"].items():
            micros = [span / figures["asked"] * 1e6 for span in seconds]
            rows.append([f"{int(stored):,}", name, spread(micros, 3)])
    opened = [
        [f"{int(stored):,}", name, spread([s * 1e3 for s in seconds], 1)]
        for stored, figures in result["lookup"].items()
        for name, seconds in figures["open_seconds"].items()
    ]
    return [
        "### Lookup\n\nMicroseconds a block, 1,000 ids in an array.\n",
        table(["blocks stored", "who, which ids", "us/block"], rows),
        "Opening the same directories:\n",
        table(["blocks stored", "who", "ms"], opened),
    ]


def opening(result):
    rows = [[name, spread([s * 1e3 for s in spans], 1)] for name, spans in result["open"].items()]
    return ["### Opening an empty directory\n", table(["who", "ms"], rows)]


def median_ratio(figures, name, operation, kind=speed_ratios):
    return statistics.median(kind(figures, name, operation))


def better_engine(figures, operation):
    names = [name for name in others(figures) if name.startswith("reference")]
    return min(
        names,
        default=None,
        key=lambda n: statistics.median(samples(figures, n, operation, "seconds")),
    )


def transfer_bars(case, figures, operation):
    """Yield (what, measured, bar, passed) of issue 5 for one case and operation."""
    there, what = others(figures), f"{operation}, {case}"
    reference = better_engine(figures, operation)
    if case in ("1 MiB", "4 MiB"):
        peers = [n for n in ("fio", "vllm") if n in there]
        wanted = {"fio": 0.9, "vllm": 1.2}
        got = {n: median_ratio(figures, n, operation) for n in peers}
        if got:
            text = ", ".join(f"{value:.2f} of {name}" for name, value in got.items())
            passed = any(value >= wanted[name] for name, value in got.items())
            yield what, text, "0.9 of fio or 1.2 of vllm", passed
        factor = 1.0
    else:
        factor = 3.0 if operation == "dump" else 2.0
    if reference:
        value = median_ratio(figures, reference, operation)
        yield what, f"{value:.2f} of {reference}", f"{factor} of the reference", value >= factor
    # Both engines: which of them is the faster changes from run to run.
    for name in (name for name in there if name.startswith("reference")):
        value = median_ratio(figures, name, operation, cpu_ratios)
        yield f"{what}, CPU", f"{value:.2f} of {name}", "at most 0.5", value <= 0.5


def other_bars(result, engine):
    for case, figures in result.get("transfers", {}).items():
        for operation in OPERATIONS:
            count = figures["facts"]["ours"][operation]["threads"]
            most = max(8, os.cpu_count() + 4)
            if engine == "io_uring":
                yield f"{operation}, {case}, threads", count, f"at most {most}", count <= most
    for case, pairs in result.get("verification", {}).get("cases", {}).items():
        size = pairs["shape"][0] * pairs["shape"][2]
        for name in OPERATIONS:
            cost = statistics.median(
                (p["ours"][name]["cpu_seconds"] - p["other"][name]["cpu_seconds"]) / size * 1e9
                for p in pairs["bare"]
            )
            what = f"verification, {name}, {case}, ns/byte"
            yield what, f"{cost:.3f}", "at most 0.12", cost <= 0.12
    for stored, figures in result.get("lookup", {}).items():
        for name, seconds in figures["seconds"].items():
            if name.startswith("ours"):
                micros = statistics.median(seconds) / figures["asked"] * 1e6
                what = f"lookup, {name.partition(', ')[2]}, {int(stored):,} stored, us/block"
                yield what, f"{micros:.2f}", "at most 0.5", micros <= 0.5
    if "open" in result:
        ms = statistics.median(result["open"]["ours"]) * 1e3
        yield "opening an empty directory, ms", f"{ms:.1f}", "under 20", ms < 20


def bars(result, engine):
    rows = []
    for case, figures in result.get("transfers", {}).items():
        for operation in OPERATIONS:
            rows += transfer_bars(case, figures, operation)
    rows += other_bars(result, engine)
    rows = [[what, got, bar, "yes" if passed else "**no**"] for what, got, bar, passed in rows]
    return ["### Bars\n", table(["what", "measured", "bar", "passed"], rows)] if rows else []


def machine(results):
    """Who measured what on what, of all engines."""
    parts = []
    last = list(results.values())[-1]
    facts = dict(last["machine"])
    peers, missing = facts.pop("peers"), facts.pop("left_out")
    text = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items())
    if peers:
        text += ". Peers: " + "; ".join(peers.values())
    parts.append(f"Machine: {text}.")
    parts += [f"Left out: {name}, {reason}." for name, reason in missing.items()]
    runs = {}
    for engine, result in results.items():
        for part, run in result["runs"].items():
            key = run["command"], run["date"]
            runs.setdefault(key, []).append((f"{engine}, {part}", run["load_average"]))
    for (command, date), done in runs.items():
        low, high = min(load for _, load in done), max(load for _, load in done)
        parts.append(f"{date}, load average {low:.1f} to {high:.1f} when parts began: `{command}`")
        if low > last["machine"]["cores"]:  # each part adds to what the next one finds
            parts[-1] += (
                "\n**The machine was not at rest:** who has more threads then gets more of it."
            )
    return ["\n\n".join(parts) + "\n"]


def tables(results):
    results = {engine: result for engine, result in results.items() if "machine" in result}
    parts = machine(results) if results else ["Nothing was measured yet.\n"]
    for engine, result in results.items():
        parts += [f"## posix_io_engine: {engine}\n", *bars(result, engine)]
        parts += transfers(result, engine)
        for name, part in (("verification", verification), ("lookup", lookups), ("open", opening)):
            if name in result:
                parts += part(result)
    return "\n".join(parts)


def write(page, text, name="measured"):
    """Put the tables between the marks of a page."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = page.read_text().partition(begin)
    _, mark, after = rest.partition(end)
    if not mark:
        raise SystemExit(f"{page}: needs the lines {begin} and {end}")
    page.write_text(f"{before}{begin}\n\n{text}\n{end}{after}")
