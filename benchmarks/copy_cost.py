"""What Cache's copies cost beside memcpy: where going around the caches pays, and where not."""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
COLUMNS = ("direction", "working_set_mib", "piece_bytes", "memcpy_gbs", "streaming_gbs", "ratio")


def run(mib: int, pairs: int) -> list[dict[str, object]]:
    """Build and run copy_cost.cpp; one row a case, ratios are medians of alternated pairs."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "copy_cost"
        sources = [HERE / "copy_cost.cpp", HERE.parent / "plugins" / "cache" / "host_copy.cpp"]
        subprocess.run(["c++", "-O2", "-std=c++17", "-o", program, *sources], check=True)
        done = subprocess.run(
            [program, str(mib), str(pairs)], capture_output=True, text=True, check=True
        )
    rows = []
    for line in done.stdout.splitlines():
        direction, *numbers = line.split()
        rows.append(dict(zip(COLUMNS, [direction, *map(float, numbers)], strict=True)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=256, help="the large working set")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = run(args.mib, args.pairs)
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    print("| " + " | ".join(COLUMNS) + " |\n" + "| --- " * len(COLUMNS) + "|")
    for row in rows:
        print("| " + " | ".join(v if isinstance(v, str) else f"{v:g}" for v in row.values()) + " |")


if __name__ == "__main__":
    main()
