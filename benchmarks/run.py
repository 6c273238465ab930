"""Everything in this folder, one after another, as Markdown tables or JSON."""

import argparse
import json
import subprocess
import sys

import submit_cost

from ucm.cli._measure import machine

PIPELINES = ("Posix", "Compress|Posix", "Cache|Posix", "Cache|Compress|Posix")
# Of SmolLM2-135M: blocks of 16 tokens moved whole, of 128 tokens moved whole, and layer by layer.
SHAPES = {
    "360 KiB blocks, 1 shard": ("--blocks", "256"),
    "2.8 MiB blocks, 1 shard": (
        *("--blocks", "32", "--block-size", "2949120"),
        *("--tensor-size", "49152"),
    ),
    "2.8 MiB blocks, 30 shards": (
        *("--blocks", "32", "--block-size", "2949120"),
        *("--shard-size", "98304", "--tensor-size", "49152"),
    ),
}
OPERATIONS = ("dump", "dump and drain", "cold load", "hot load", "lookup")


def bench(pipeline, shape, repeat):
    command = [sys.executable, "-c", "import sys, ucm.cli; sys.exit(ucm.cli.main())", "bench"]
    command += ["--pipeline", pipeline, *shape, "--repeat", str(repeat), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def row(pipeline, result):
    cells = []
    for name in OPERATIONS:
        figures = result["results"][name]
        if name == "lookup":
            cells.append(f"{figures['blocks_per_s']['median']:,.0f}")
        else:
            cells.append(f"{figures['gb_per_s']['median']:.2f}")
    return f"| `{pipeline}` | {result['ratio']:.2f} | {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    args = parser.parse_args()
    everything = {"machine": machine(), "pipelines": {}}
    say = (lambda *_, **__: None) if args.json else print
    for title, shape in SHAPES.items():
        say(f"\n{title}; GB/s (10^9 bytes), lookup in blocks/s\n")
        say(f"| pipeline | ratio | {' | '.join(OPERATIONS)} |")
        say("| --- " * (len(OPERATIONS) + 2) + "|")
        for pipeline in PIPELINES:
            result = bench(pipeline, shape, args.repeat)
            everything["pipelines"][f"{pipeline}, {title}"] = result
            say(row(pipeline, result), flush=True)
    everything["submit_cost"] = submit_cost.run(1024, 2000)
    say("\n| submitting, Empty | median |\n| --- | --- |")
    for name, figures in everything["submit_cost"].items():
        say(f"| {name} | {figures['median_us']:.1f} us |")
    if args.json:
        print(json.dumps(everything, indent=2))
    else:
        print("\n" + ", ".join(f"{key} {value}" for key, value in everything["machine"].items()))


if __name__ == "__main__":
    main()
