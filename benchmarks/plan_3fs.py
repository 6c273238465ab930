"""A plan, not a claim: what a cluster of 3FS might move, from a simulation of queues.

python benchmarks/plan_3fs.py                                  the tables of docs/ds3fs.md
python benchmarks/plan_3fs.py --nodes 6 --clients 12           one cluster, all figures
python benchmarks/plan_3fs.py --clients 1 --in-flight 8 --op write

A client keeps so many requests in flight. Each goes through the daemon on its machine, over the
network, waits for a disk that is drawn, and is moved by that disk, the NIC of that node and the
NIC of the client, each of which serves one after another at its rate; then the next one follows.
A write is moved by its replicas one after another. A block is as many requests as it has chunks.

Nothing here was measured by us. Where the figures are from:
    disks, node-gbit      3FS's README: 16 NVMe and 2 x 200 Gbit/s a node
    client-gbit           3FS's README: one NIC of 400 Gbit/s where KV cache is read
    replicas              3FS's design notes
    disk-gb, disk-us      bytes/s and first byte of such an NVMe: assumed, as data sheets have them
    efficiency            of a NIC, what headers and congestion leave: assumed
    path-us, daemon-us    there and back over RDMA, and the work of FUSE's daemon: assumed
"""

import argparse
import dataclasses
import heapq
import json
import random

KIB, MIB = 1 << 10, 1 << 20


@dataclasses.dataclass(frozen=True)
class Plan:
    """A cluster, and what its clients ask for."""

    nodes: int = 4
    clients: int = 1
    in_flight: int = 64
    request: int = MIB
    op: str = "read"
    disks: int = 16
    disk_gb: float = 5.0
    disk_write_gb: float = 2.5
    disk_us: float = 100.0
    node_gbit: float = 400.0
    client_gbit: float = 400.0
    efficiency: float = 0.9
    path_us: float = 30.0
    daemon_us: float = 5.0
    replicas: int = 3
    spread: str = "fixed"  # of service times: fixed, or exponential as closed forms want them

    def nic_s(self, gbit):
        return self.request * 8 / (gbit * 1e9 * self.efficiency)

    def disk_s(self):
        rate = self.disk_gb if self.op == "read" else self.disk_write_gb
        return self.request / (rate * 1e9)

    def copies(self):
        return 1 if self.op == "read" else min(self.replicas, self.nodes)

    def demands(self):
        """Return the seconds that one request takes of each kind of station, by name."""
        return {
            "daemon": self.daemon_us * 1e-6,
            "client NIC": self.nic_s(self.client_gbit),
            "node NIC": self.nic_s(self.node_gbit) * self.copies(),
            "disk": self.disk_s() * self.copies(),
        }

    def stations(self):
        """Return how many stations of each kind there are."""
        return {
            "daemon": self.clients,
            "client NIC": self.clients,
            "node NIC": self.nodes,
            "disk": self.nodes * self.disks,
        }

    def wait_s(self):
        """Return the mean time a request spends where nothing queues."""
        return (self.path_us + self.disk_us * self.copies()) * 1e-6

    def most(self):
        """Return requests/s that no queueing can exceed, and what sets that limit."""
        counts = self.stations()
        bounds = {name: counts[name] / s for name, s in self.demands().items()}
        alone = sum(self.demands().values()) + self.wait_s()
        bounds["requests in flight"] = self.clients * self.in_flight / alone
        limit = min(bounds, key=bounds.get)
        return bounds[limit], limit


class Simulation:
    """Requests that go round; a station serves in the order of arrival."""

    def __init__(self, plan, seed=1):
        self.plan, self.rng = plan, random.Random(seed)
        self.free_at, self.busy_s = {}, dict.fromkeys(plan.demands(), 0.0)

    def route(self, client):
        """Return the stations of one request: (kind, which, seconds), or (None, None, a wait)."""
        plan = self.plan
        daemon = ("daemon", client, plan.daemon_us * 1e-6)
        nic = ("client NIC", client, plan.nic_s(plan.client_gbit))
        path = (None, None, plan.path_us * 1e-6)
        stored = []
        for node in self.rng.sample(range(plan.nodes), plan.copies()):
            disk = (node, self.rng.randrange(plan.disks))
            node_nic = ("node NIC", node, plan.nic_s(plan.node_gbit))
            moved = [(None, None, plan.disk_us * 1e-6), ("disk", disk, plan.disk_s())]
            stored += [*moved, node_nic] if plan.op == "read" else [node_nic, *moved]
        return [daemon, path, *stored, nic] if plan.op == "read" else [daemon, nic, path, *stored]

    def pass_through(self, now, kind, which, seconds):
        """Return when a request that comes now has been served."""
        if kind is None:
            return now + self.rng.expovariate(1 / seconds) if seconds else now
        if self.plan.spread == "exponential":
            seconds = self.rng.expovariate(1 / seconds)
        done = max(now, self.free_at.get((kind, which), 0.0)) + seconds
        self.free_at[kind, which] = done
        self.busy_s[kind] += seconds
        return done

    def run(self, requests):
        """Simulate so many requests, after half as many that are not counted."""
        plan, events, order = self.plan, [], 0
        for number in range(plan.clients * plan.in_flight):
            client = number % plan.clients
            events.append((0.0, number, 0.0, client, self.route(client), 0))
            order = number + 1
        heapq.heapify(events)
        done, started, times, busy = -requests // 2, 0.0, [], {}
        while done < requests:
            now, _, began, client, route, stage = heapq.heappop(events)
            if stage == len(route):
                done += 1
                if done == 0:
                    started, busy = now, dict(self.busy_s)
                if done > 0:
                    times.append(now - began)
                began, route, stage = now, self.route(client), 0
            at = self.pass_through(now, *route[stage])
            heapq.heappush(events, (at, order, began, client, route, stage + 1))
            order += 1
        span, counts = now - started, plan.stations()
        times.sort()
        return {
            "requests_s": requests / span,
            "gb_s": requests * plan.request / span / 1e9,
            "mean_ms": sum(times) / len(times) * 1e3,
            "p99_ms": times[len(times) * 99 // 100] * 1e3,
            "busy": {k: (self.busy_s[k] - busy[k]) / span / counts[k] for k in counts},
        }


def simulate(plan, requests=20000, seed=1):
    return Simulation(plan, seed).run(max(requests, 2 * plan.clients * plan.in_flight))


def mean_values(plan):
    """Return requests/s of one client by mean value analysis: exact for exponential times."""
    counts = plan.stations()
    assert plan.clients == 1
    # A station of several that are drawn alike is visited by a part of the requests.
    demands = [s / counts[name] for name, s in plan.demands().items() for _ in range(counts[name])]
    queues = [0.0] * len(demands)
    for n in range(1, plan.in_flight + 1):
        times = [d * (1 + q) for d, q in zip(demands, queues, strict=True)]
        rate = n / (plan.wait_s() + sum(times))
        queues = [rate * t for t in times]
    return rate


def table(head, rows):
    print("| " + " | ".join(head) + " |")
    print("| " + " | ".join(["---"] + ["--:"] * (len(head) - 1)) + " |")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    print()


def cell(plan, requests):
    return f"{simulate(plan, requests)['gb_s']:.1f}"


def by_nodes(base, requests):
    clients = (1, 4, 16)
    for op in ("read", "write"):
        rows = []
        for nodes in (1, 2, 4, 8, 16, 32):
            plans = [
                dataclasses.replace(base, op=op, nodes=nodes, clients=n, disks=8) for n in clients
            ]
            what = " / ".join(plan.most()[1] for plan in plans)
            rows.append([nodes, *(cell(plan, requests) for plan in plans), what])
        heads = [f"{n} client{'s'[: n > 1]}" for n in clients]
        table([f"nodes, {op}s, GB/s", *heads, "limits"], rows)


def by_requests(base, requests):
    depths = (1, 4, 16, 64, 256)
    rows = []
    for size, name in ((64 * KIB, "64 KiB"), (MIB, "1 MiB"), (4 * MIB, "4 x 1 MiB")):
        plans = [
            dataclasses.replace(base, nodes=8, in_flight=n * max(1, size // MIB)) for n in depths
        ]
        plans = [dataclasses.replace(plan, request=min(size, MIB)) for plan in plans]
        rows.append([name, *(cell(plan, requests) for plan in plans)])
    table(["one client, 8 nodes, GB/s", *(f"{n} in flight" for n in depths)], rows)


def beside_published(base, requests):
    """What 3FS's README tells of two clusters, and the plan of those."""
    large = dataclasses.replace(base, nodes=180, clients=500, in_flight=16, client_gbit=200)
    one = dataclasses.replace(base, nodes=32, clients=1, in_flight=256)
    rows = [
        [
            "180 nodes, 500 clients of 200 Gbit/s",
            cell(large, requests),
            f"{6.6 * 1.024**4 * 1e3:.0f}",
        ],
        [
            "one client of 400 Gbit/s, KV cache, at its peak",
            cell(one, requests),
            f"{40 * 1.024**3:.0f}",
        ],
    ]
    table(["reads, GB/s", "plan", "published"], rows)


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for field in dataclasses.fields(Plan):
        parser.add_argument(
            "--" + field.name.replace("_", "-"), type=field.type, default=argparse.SUPPRESS
        )
    parser.add_argument("--requests", type=int, default=20000, help="simulated requests")
    parser.add_argument("--json", action="store_true", help="all figures of one cluster")
    return parser.parse_args()


def main():
    given = vars(arguments())
    requests, as_json = given.pop("requests"), given.pop("json")
    plan = Plan(**given)
    if given or as_json:
        most, limit = plan.most()
        figures = simulate(plan, requests)
        figures["most_gb_s"], figures["limit"] = most * plan.request / 1e9, limit
        print(json.dumps({"plan": dataclasses.asdict(plan), **figures}, indent=1))
        return
    print("A plan, not a claim: simulated, with figures that 3FS's documents give or we assume.\n")
    by_nodes(plan, requests)
    by_requests(plan, requests)
    beside_published(plan, requests)


if __name__ == "__main__":
    main()
