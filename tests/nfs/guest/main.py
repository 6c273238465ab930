"""Runs the tests, one line each, and counts."""

import platform
import sys
import time
import traceback
from pathlib import Path

from stage import LeftOut, Server, kill_all_hosts

import tests
import ucm


def run(test, server, only):
    """Return how it ended, or None where it was not asked for."""
    title = test.__doc__.splitlines()[0].rstrip(".")
    if not any(word in test.__name__ for word in only.split(",")):
        return None
    begin, said = time.monotonic(), ""
    try:
        said = test(server) or ""
        end = "PASS"
    except LeftOut as why:
        end, said = "left out", str(why)
    except Exception:
        end, said = "FAIL", traceback.format_exc()
    finally:
        kill_all_hosts()
    print(f"{end:8} {time.monotonic() - begin:6.1f} s  {title}", flush=True)
    for line in said.splitlines():
        print(f"{'':20}{line}", flush=True)
    return end


def main():
    only = (Path(__file__).parent / "only").read_text()
    print(f"Linux {platform.release()} {platform.machine()}, Python {platform.python_version()}")
    print(f"ucm {ucm.__version__}", flush=True)
    server = Server()
    ends = [run(test, server, only) for test in tests.ALL]
    counts = [ends.count(end) for end in ("PASS", "FAIL", "left out")]
    print("nfs: {} passed, {} failed, {} left out".format(*counts), flush=True)
    return 1 if counts[1] else 0


if __name__ == "__main__":
    sys.exit(main())
