"""The simulation of a cluster of 3FS agrees with what queueing theory knows in closed form."""

import json
import subprocess
import sys

import pytest
from support import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def plans(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import plan_3fs

    return plan_3fs


def test_a_request_alone_takes_the_sum_of_its_parts(plans):
    for op in ("read", "write"):
        plan = plans.Plan(in_flight=1, op=op, nodes=4)
        assert plans.simulate(plan, 4000)["requests_s"] == pytest.approx(plan.most()[0], rel=0.02)
        assert plan.most()[1] == "requests in flight"


@pytest.mark.parametrize("in_flight", [2, 8, 32])
def test_one_client_moves_what_mean_value_analysis_says(plans, in_flight):
    plan = plans.Plan(nodes=2, disks=2, in_flight=in_flight, spread="exponential")
    figures = plans.simulate(plan, 20000)
    assert figures["requests_s"] == pytest.approx(plans.mean_values(plan), rel=0.03)


def test_littles_law_holds(plans):
    """What is in the system is what comes a second, times how long it stays."""
    plan = plans.Plan(nodes=3, clients=4, in_flight=16)
    figures = plans.simulate(plan, 10000)
    product = figures["requests_s"] * figures["mean_ms"] / 1e3
    assert product == pytest.approx(plan.clients * plan.in_flight, rel=0.02)


def test_utilisation_is_work_over_time(plans):
    plan = plans.Plan(nodes=3, clients=2, in_flight=16)
    figures, counts = plans.simulate(plan, 10000), plan.stations()
    for name, seconds in plan.demands().items():
        expected = figures["requests_s"] * seconds / counts[name]
        assert figures["busy"][name] == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(
    ("nodes", "clients", "limit"), [(1, 16, "disk"), (16, 1, "client NIC"), (1, 1, "daemon")]
)
def test_many_requests_reach_the_narrowest_part_and_no_more(plans, nodes, clients, limit):
    small = {"request": 4096} if limit == "daemon" else {}
    plan = plans.Plan(nodes=nodes, clients=clients, disks=8, in_flight=128, **small)
    most, narrowest = plan.most()
    assert narrowest == limit
    assert 0.95 * most < plans.simulate(plan, 8000)["requests_s"] <= 1.01 * most


def test_the_script_tells_of_one_cluster():
    command = [sys.executable, BENCHMARKS / "plan_3fs.py", "--nodes", "2", "--requests", "1000"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures = json.loads(done.stdout)
    assert figures["plan"]["nodes"] == 2
    assert figures["gb_s"] <= figures["most_gb_s"]
