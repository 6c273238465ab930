"""What codec_peers.py measured, as Markdown tables and as the bars that the codec has to pass."""

import statistics

import peer_tables
from peer_tables import MIB, spread, table

# What the codec alone has to reach, as parts of memcpy, by kernels.
SPEEDS = {
    "avx512": {"decompress": 0.6, "compress": 0.4},
    "avx2": {"decompress": 0.45, "compress": 0.18},
}
WITH_CHECKSUMS = 0.35  # decompressing
OF_BOUND = {"fast": 0.985, "small": 0.994}  # bf16 of any model
# Of one model: by dtype, and for bf16 by tokens a block.
SMOLLM2 = {
    "_bf16_b128": {"fast": 1.475, "small": 1.485},
    "_bf16_b16": {"fast": 1.445, "small": 1.455},
    "_fp16": {"fast": 1.155},
    "_fp8": {"fast": 1.175},
}
NOISE = 0.8  # of memcpy, for bytes that do not compress,
GROWTH = 4096  # which grow by no more, a shard
MATTERS = 32 / 31  # a tile that saves less is stored as it is
ALIKE = 1.005  # ratios: then the speed decides which piece is better for a peer


def rate(row, name):
    return statistics.median(row[name])


def part_of_memcpy(row, name):
    """The median of ratios, each to the memcpy of the same round."""
    return statistics.median(a / b for a, b in zip(row[name], row["memcpy"], strict=True))


def ours(figures, kernels=None, checksums=None, codec=None):
    """Yield our rows that are of these."""
    wanted = {"kernels": kernels, "checksums": checksums, "codec": codec}
    wanted = {key: value for key, value in wanted.items() if value is not None}
    for name, row in figures["rows"].items():
        if "codec" in row and all(row[key] == value for key, value in wanted.items()):
            yield name, row


def peers(figures):
    """Return the rows of peers, each with the pieces that are better for it."""
    best = {}
    for row in figures["rows"].values():
        if "coder" not in row:
            continue
        other = best.setdefault(row["coder"], row)
        alike = max(row["ratio"], other["ratio"]) < ALIKE * min(row["ratio"], other["ratio"])
        better = rate(row, "decompress") > rate(other, "decompress")
        if better if alike else row["ratio"] > other["ratio"]:
            best[row["coder"]] = row
    return best


def beaten(figures, row):
    """Tell whether something that we ship is at least as good at everything."""
    return any(
        own["ratio"] >= row["ratio"]
        and all(rate(own, name) >= rate(row, name) for name in ("compress", "decompress"))
        for _, own in ours(figures, figures["kernels"], checksums=True)
    )


def matters(row):
    return row["ratio"] >= MATTERS


def ahead(figures):
    """Return the rows of peers that none of ours matches, whatever their pieces; by name."""
    return {
        f"{row['coder']}, {row['piece'] / 1024:g} KiB": row
        for row in figures["rows"].values()
        if "coder" in row and matters(row) and not beaten(figures, row)
    }


def ratio_bars(name, figures):
    wanted, bound = {}, figures["bound"]
    if name.startswith("smollm2_"):
        dtype, block = name.split("_")[1], name.split("_")[-1]
        wanted = SMOLLM2.get(f"_{dtype}_{block}", SMOLLM2.get(f"_{dtype}", {}))
    elif figures["dtype"] == "bf16" and bound:
        wanted = {codec: part * bound for codec, part in OF_BOUND.items()}
    for codec, least in wanted.items():
        ((_, row),) = ours(figures, figures["kernels"], True, codec)
        bar = f"at least {least:.3f}"
        if not name.startswith("smollm2_"):
            bar += f", {OF_BOUND[codec]} of the bound"
        yield f"ratio, {codec}", f"{row['ratio']:.3f}", bar, row["ratio"] >= least
    found = figures["guessed"] / figures["named"]
    what = "ratio without a dtype, fast"
    yield what, f"{found:.3f} of naming it", "at least 0.99", found >= 0.99


def speed_bars(figures):
    for kernels, wanted in SPEEDS.items():
        for _, row in ours(figures, kernels, checksums=False, codec="fast"):
            for name, least in wanted.items():
                value = part_of_memcpy(row, name)
                yield f"{name}, {kernels}", f"{value:.2f} M", f"{least} M", value >= least
    for _, row in ours(figures, figures["kernels"], checksums=True, codec="fast"):
        value, what = part_of_memcpy(row, "decompress"), "decompress, with checksums"
        yield what, f"{value:.2f} M", f"{WITH_CHECKSUMS} M", value >= WITH_CHECKSUMS


def noise_bars(figures):
    noise = figures.get("noise")
    for name in [name for name in noise or () if "compress" in name]:
        yield f"{name}, noise", f"{noise[name]:.2f} M", f"{NOISE} M", noise[name] >= NOISE
    if noise:
        grown = (noise["frame_bytes"] - figures["bytes"]) / noise["shards"]
        yield "bytes that noise grows by, a shard", f"{grown:.0f}", f"{GROWTH}", grown <= GROWTH


def peer_bars(figures):
    rows = [row for row in figures["rows"].values() if "coder" in row]
    if not rows:
        return
    left = [f"{row['coder']} (ratio {row['ratio']:.3f})" for row in ahead(figures).values()]
    all_that_matter = {row["coder"] for row in rows if matters(row)}
    said = f"all but {', '.join(left)}" if left else f"all {len(all_that_matter)}"
    yield "peers that one of ours matches in all three", said, "all", not left


def bars(result):
    rows = []
    for name, figures in result["files"].items():
        judged = [*ratio_bars(name, figures), *speed_bars(figures), *noise_bars(figures)]
        judged += peer_bars(figures)
        rows += [[name, what, got, bar, "yes" if ok else "**no**"] for what, got, bar, ok in judged]
    passed = sum(row[-1] == "yes" for row in rows)
    columns = ["file", "what", "measured", "bar", "passed"]
    return [f"### Bars of the codec\n\n{passed} of {len(rows)} passed.\n", table(columns, rows)]


def against(row, own):
    """Say how a peer compares to one of ours."""
    percent = 100 * (own["ratio"] / row["ratio"] - 1)  # of stored bytes
    coding, decoding = (rate(row, name) / rate(own, name) for name in ("compress", "decompress"))
    said = f"stores {abs(percent):.1f} % {'more' if percent > 0 else 'less'} than `{own['codec']}`"
    return f"{said}, codes at {coding:.2f} and decodes at {decoding:.2f} of its speed"


def frontier(result):
    """Say of each file what is ahead of ours in ratio or speed, and by how much."""
    lines, matched = [], []
    for name, figures in result["files"].items():
        if not any("coder" in row for row in figures["rows"].values()):
            continue
        own = [row for _, row in ours(figures, figures["kernels"], checksums=True)]
        found = ahead(figures)
        if not found:
            matched.append(f"`{name}`")
        for peer, row in found.items():
            said = "; ".join(against(row, each) for each in own)
            lines.append(f"- `{name}`: {peer}, {said}.")
    if not lines and not matched:
        return []
    said = "For each peer one of ours is at least as good in ratio, coding and decoding: of "
    said += f"{', '.join(matched) or 'no file'}."
    if lines:
        said += " Beside ours on that frontier, or ahead of it, are:"
    return [f"### Where peers are ahead\n\n{said}\n", *lines, ""]


def row_of(name, row, bound):
    piece = f"{row['piece'] / 1024:g} KiB" if "piece" in row else ""
    cells = [name, piece, f"{row['ratio']:.3f}", f"{row['ratio'] / bound:.3f}" if bound else "-"]
    for what in ("compress", "decompress"):
        cells += [f"{rate(row, what):.2f}", f"{part_of_memcpy(row, what):.2f}"]
    return [*cells, f"{row['call_us']:.0f}" if "call_us" in row else ""]


def codecs(result):
    parts = []
    for name, figures in result["files"].items():
        bound, copies = figures["bound"], figures["copies"]
        memcpy = [value for row in figures["rows"].values() for value in row["memcpy"]]
        said = f"{figures['dtype']}, planes of {figures['plane'] / 1024:g} KiB"
        said += f", {figures['bytes'] / MIB:.0f} MiB"
        said += f" ({copies} copies of the file)" if copies > 1 else ""
        said += f"; bound {bound:.3f}" if bound else ""
        parts.append(f"### Codec, {name}\n\n{said}; M is {spread(memcpy)} GB/s")
        parts[-1] += f" in pieces of 2 MiB, {figures['whole_copy']:.2f} in one.\n"
        rows = [row_of(who, row, bound) for who, row in ours(figures)]
        rows += [row_of(who, row, bound) for who, row in peers(figures).items()]
        columns = ["who", "pieces", "ratio", "of bound", "compress GB/s", "of M"]
        parts.append(table([*columns, "decompress GB/s", "of M", "us a call"], rows))
    return parts


def tables(result):
    if "machine" not in result:
        return "Nothing was measured yet.\n"
    parts = [peer_tables.machine({"Codec": result}), bars(result), frontier(result), codecs(result)]
    return "\n".join(line for part in parts for line in part)
