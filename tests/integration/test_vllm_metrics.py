"""Metrics of the vLLM connector: which there are, which are selected, how they reach Prometheus.

vLLM is not needed: where its classes are, here are the two that ours are made of.
"""

import dataclasses
import importlib
import json
import sys
import types

import prometheus_client
import pytest
import yaml
from support import ROOT

import ucm
from ucm import config
from ucm.integration.vllm import metrics
from ucm.integration.vllm.collector import Collector, merge, summary
from ucm.integration.vllm.metrics import METRICS, Selection, failure, layer_metrics

EXAMPLE = ROOT / "examples" / "vllm" / "metrics.yaml"


def whole(**top):
    entry = {
        "ucm_connector_name": "UcmPipelineStore",
        "ucm_connector_config": {"store_pipeline": "Empty"},
    }
    return {"ucm_connectors": [entry], **top}


def select(selection):
    return metrics.select(config.load(whole(metrics_config=selection)))


@pytest.fixture
def collector():
    return Collector(Selection(), clock=lambda: 0.0)


# The table.


def test_the_table_is_whole():
    for name, metric in {**METRICS, **layer_metrics()}.items():
        assert metric.name == name
        assert metric.help.endswith("."), name
        assert metric.kind in metrics.KINDS
        assert (metric.kind == "counter") == name.endswith(("_total", "_count", "_sum")), name
        assert bool(metric.buckets) == (metric.kind == "histogram")
        assert list(metric.buckets) == sorted(set(metric.buckets))


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (ucm.Status.NOT_FOUND, "missing"),
        (ucm.Status.CORRUPT, "corrupt"),
        (ucm.Status.TIMEOUT, "late"),
        (ucm.Status.NO_SPACE, "full"),
        (ucm.Status.BUSY, "busy"),
        (ucm.Status.IO, "other"),
        (4711, "other"),
    ],
)
def test_a_failure_has_one_of_the_causes_that_there_are(status, cause):
    assert failure(status) == cause
    assert cause in METRICS["load_failed_blocks_total"].values


# What a configuration selects.


def test_metrics_are_off_unless_asked_for():
    assert metrics.select(config.load(whole())) is None
    assert metrics.select(config.load(whole(enable_metrics=False))) is None
    off = Collector(None)
    off.count("load_blocks_total")
    off.looked_up(4, 1, 2, {"absent": 1}, 0.001)
    off.moved("load", 1, 2, 4096, 0.1)
    assert off.take() is None


def test_enable_metrics_alone_selects_all():
    chosen = metrics.select(config.load(whole(enable_metrics=True)))
    assert all(chosen.takes(m.kind, m.name) for m in [*METRICS.values(), *layer_metrics().values()])


def test_a_list_selects_within_its_kind():
    chosen = select({"counters": ["load_blocks_total", "store_dump_bytes_total"]})
    assert chosen.takes("counter", "load_blocks_total")
    assert chosen.takes("counter", "store_dump_bytes_total")
    assert not chosen.takes("counter", "save_blocks_total")
    assert chosen.takes("histogram", "load_duration")
    collector = Collector(chosen)
    collector.moved("save", 1, 2, 4096, 0.1)
    assert "counters" not in collector.take()


def test_a_kind_can_be_turned_off_whatever_is_listed():
    chosen = select({"enabled_metrics": {"histograms": False}, "histograms": ["load_speed"]})
    assert not chosen.takes("histogram", "load_speed")
    assert chosen.takes("counter", "load_blocks_total")


def test_buckets_words_and_prefix_can_be_changed():
    entry = {"name": "load_speed", "documentation": "How fast.", "buckets": [0, 1, 2.5]}
    chosen = select({"metric_prefix": "mine_", "histogram": [entry]})
    assert chosen.prefix == "mine_"
    assert chosen.metrics["load_speed"].buckets == (0, 1, 2.5)
    assert chosen.metrics["load_speed"].help == "How fast."
    assert METRICS["load_speed"].help != "How fast."


def test_files_for_other_monitors_are_taken_and_what_has_no_effect_is_said(tmp_path):
    path = tmp_path / "metrics.yaml"
    path.write_text(
        """
log_interval: 5
multiproc_dir: "/somewhere"
metric_prefix: "ucm:"
histogram_max_length: 10000
counter:
  - name: "cache_lookup_hit_blocks_total"
    documentation: "One that is not here"
  - name: "posix_load_failures_total"
gauge:
  - name: "cache_lookup_hit_rate"
    multiprocess_mode: "livemostrecent"
histogram:
  - name: "load_requests_num"
    documentation: "Number of requests loaded"
    buckets: [1, 5, 10]
"""
    )
    checked = config.load(whole(metrics_config_path=str(path)))
    notes = [note.removeprefix(f"{path}: ") for note in checked.notes]
    assert [note.split(": no effect")[0] for note in notes] == [
        "log_interval",
        "multiproc_dir",
        "histogram_max_length",
        "cache_lookup_hit_blocks_total and 2 others",
    ]
    chosen = metrics.select(checked)
    assert chosen.takes("histogram", "load_requests_num")
    assert not chosen.takes("counter", "load_blocks_total")


@pytest.mark.parametrize(
    ("selection", "said"),
    [
        ({"counter": ["load_block_total"]}, "unknown counter; did you mean 'load_blocks_total'?"),
        ({"histogramms": []}, "histogramms: unknown key; did you mean 'histograms'?"),
        ({"counters": ["load_speed"]}, "load_speed is a histogram; move it to histograms"),
        ({"counters": "all"}, "counters: 'all' is not a list of metrics"),
        ({"counters": [7]}, "counters: 7 has no name"),
        ({"metric_prefix": "ucm-"}, "metric_prefix: 'ucm-' is not allowed"),
        ({"enabled_metrics": ["counters"]}, "enabled_metrics: ['counters'] is not a mapping"),
        ({"enabled_metrics": {"counters": 1}}, "enabled_metrics.counters: 1 is not true or false"),
        ({"enabled_metrics": {"timers": True}}, "enabled_metrics.timers: unknown kind"),
        ({"histograms": [{"name": "load_speed", "bucket": [1]}]}, "did you mean 'buckets'?"),
        ({"histograms": [{"name": "load_speed", "buckets": [2, 1]}]}, "is not a list of rising"),
        ({"histograms": [{"name": "load_speed", "buckets": []}]}, "[] is not a list of rising"),
        ({"nonsense": 1}, "docs/metrics.md lists what there is"),
    ],
)
def test_what_is_wrong_is_named_at_the_start(tmp_path, selection, said):
    with pytest.raises(ucm.ConfigError) as caught:
        config.load(whole(metrics_config=selection))
    assert said in str(caught.value)
    assert str(caught.value).startswith("kv_connector_extra_config: metrics_config: ")
    path = tmp_path / "metrics.yaml"
    path.write_text(yaml.safe_dump(selection))
    with pytest.raises(ucm.ConfigError) as caught:
        config.load(whole(metrics_config_path=str(path)))
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_file_that_is_not_there_is_named_with_its_key(tmp_path):
    with pytest.raises(ucm.ConfigError, match=r"metrics_config_path: .*none.yaml: cannot be read"):
        config.load(whole(metrics_config_path=str(tmp_path / "none.yaml")))


def test_the_example_selects_what_there_is():
    checked = config.load(whole(metrics_config_path=str(EXAMPLE)))
    assert checked.notes == []
    chosen = metrics.select(checked)
    assert chosen.takes("counter", "missed_blocks_total")
    assert chosen.metrics["load_duration"].buckets != METRICS["load_duration"].buckets


# What is collected.


def test_nothing_happened_is_none(collector):
    assert collector.take() is None
    collector.count("load_blocks_total", 0)
    assert collector.take() is None
    collector.count("load_blocks_total", 2)
    assert collector.take() == {"counters": {"load_blocks_total": {"": 2}}}
    assert collector.take() is None


def test_a_lookup_tells_hits_and_misses_by_cause(collector):
    collector.looked_up(10, 2, 6, {"absent": 1, "hit_ratio": 1}, 0.002)
    data = collector.take()
    assert data["counters"] == {
        "lookup_requests_total": {"": 1},
        "prompt_blocks_total": {"": 10},
        "hit_blocks_total": {"local": 2, "external": 6},
        "missed_blocks_total": {"absent": 1, "hit_ratio": 1},
    }
    assert [of["sum"] for of in exact(data).values()] == [0.002, 0.75]


def test_a_transfer_tells_bytes_time_and_failures(collector):
    collector.moved("load", 2, 5, 1000, 0.5, {"corrupt": 1})
    collector.moved("load", 1, 5, 1000, 0.25)
    collector.moved("load", 1, 0, 1000, 0.25, {"missing": 3})
    counters = collector.take()["counters"]
    assert counters["load_requests_total"] == {"": 3}
    assert counters["load_bytes_total"] == {"": 10000}
    assert counters["load_seconds_total"] == {"": 0.75}
    assert counters["load_failed_blocks_total"] == {"corrupt": 1, "missing": 3}


def test_what_does_not_exist_cannot_be_counted(collector):
    with pytest.raises(KeyError, match="no metric load_block_total"):
        collector.count("load_block_total")


def exact(data):
    """Return count and sum of each histogram."""
    return {
        name: {"count": sum(n for n, _ in of.values()), "sum": sum(t for _, t in of.values())}
        for name, of in data["histograms"].items()
    }


def test_histograms_stay_small_however_much_is_observed(collector):
    for i in range(5000):
        collector.observe("load_blocks_num", i)
    data = collector.take()
    assert len(data["histograms"]["load_blocks_num"]) <= 13
    assert exact(data) == {"load_blocks_num": {"count": 5000, "sum": 5000 * 4999 // 2}}


def test_what_is_sent_is_plain(collector):
    collector.looked_up(10, 2, 6, {"absent": 2}, 0.002)
    collector.moved("save", 1, 2, 4096, 0.1)
    data = collector.take()
    assert json.loads(json.dumps(data)) == data


def test_merging_adds_and_leaves_the_other_as_it_was(collector):
    collector.moved("load", 1, 2, 100, 0.5)
    one = collector.take()
    collector.moved("load", 1, 3, 100, 0.5)
    collector.moved("save", 1, 3, 100, 0.5)
    two = collector.take()
    before = json.dumps(two)
    both = merge(merge({}, one), two)
    assert both["counters"]["load_blocks_total"] == {"": 5}
    assert exact(both)["load_blocks_num"] == {"count": 2, "sum": 5}
    merge(both, two)
    assert json.dumps(two) == before


def test_of_a_gauge_the_later_value_counts_and_ranks_are_kept_apart():
    one = {"gauges": {"store_frames": {"Cache|tp0": 1, "Cache|tp1": 2}}}
    merge(one, {"gauges": {"store_frames": {"Cache|tp1": 7}}})
    assert one == {"gauges": {"store_frames": {"Cache|tp0": 1, "Cache|tp1": 7}}}


def test_the_summary_says_what_matters(collector):
    collector.looked_up(10, 2, 6, {"absent": 2}, 0.002)
    collector.moved("load", 1, 6, 10**9, 2.0, {"corrupt": 1})
    collector.count("held_back_blocks_total", 2)
    assert summary(collector.take()) == {
        "lookups": 1,
        "local_hit_ratio": 0.2,
        "external_hit_ratio": 0.6,
        "load_blocks": 6,
        "load_GB/s": 3.0,
        "load_failed_blocks": 1,
        "save_blocks": 0,
        "held_back_blocks": 2,
    }


# What the layers count.


class Stats:
    def __init__(self, **layers):
        self.layers = layers
        self.looks = 0

    def stats(self):
        self.looks += 1
        return self.layers


def watching(store, rank="tp0", selection=None):
    now = [100.0]
    collector = Collector(selection or Selection(), clock=lambda: now[0])
    collector.watch(store, rank)

    def take(later=1.0):
        now[0] += later
        return collector.take()

    return take


def test_layers_tell_increments_and_gauges_that_changed():
    store = Stats(Cache={"dump_bytes_total": 5, "frames": 8})
    take = watching(store)
    assert take() == {
        "counters": {"store_dump_bytes_total": {"Cache|tp0": 5}},
        "gauges": {"store_frames": {"Cache|tp0": 8}},
    }
    assert take() is None
    store.layers = {"Cache": {"dump_bytes_total": 12, "frames": 8}}
    assert take() == {"counters": {"store_dump_bytes_total": {"Cache|tp0": 7}}}


def test_layers_are_looked_at_once_a_second():
    store = Stats(Cache={"dump_bytes_total": 5})
    take = watching(store)
    for _ in range(20):
        take(0.1)
    assert store.looks <= 3


def test_what_processes_share_counts_from_when_this_one_came():
    store = Stats(Cache={"evicted_blocks_total": 1000})
    take = watching(store)
    assert take() == {"counters": {"store_evicted_blocks_total": {"Cache|tp0": 0}}}
    store.layers = {"Cache": {"evicted_blocks_total": 1003}}
    assert take() == {"counters": {"store_evicted_blocks_total": {"Cache|tp0": 3}}}
    store.layers = {"Cache": {"evicted_blocks_total": 2}}  # the memory was made anew
    assert take() == {"counters": {"store_evicted_blocks_total": {"Cache|tp0": 2}}}


def test_a_layer_that_nobody_describes_is_told_by_its_names():
    take = watching(Stats(Mine={"load_calls_total": 3, "depth": 4, "us": {"count": 2, "sum": 9}}))
    assert take() == {
        "counters": {"store_load_calls_total": {"Mine|tp0": 3}},
        "gauges": {
            "store_depth": {"Mine|tp0": 4},
            "store_us_count": {"Mine|tp0": 2},
            "store_us_sum": {"Mine|tp0": 9},
        },
    }


def test_a_real_pipeline_is_told_whole(folder):
    options = {"storage_backends": str(folder), "block_size": 4096}
    with ucm.open_pipeline("Compress|Posix", **options) as store:
        take = watching(store, "scheduler")
        store.wait(store.dump([bytes(16)], [0], [[bytes(4096)]]))
        data = take()
    told = data["counters"]["store_dump_bytes_total"]
    assert told["Compress|scheduler"] == 4096
    assert set(told) == {"Compress|scheduler", "Posix|scheduler"}
    known = layer_metrics()
    for kind, names in (("counter", data["counters"]), ("gauge", data["gauges"])):
        assert all(known[name].kind == kind for name in names)
    assert take() is None  # it is closed


# Through vLLM to Prometheus.


@pytest.fixture
def vllm(monkeypatch):
    """Our classes over stand-ins for vLLM's two base classes."""

    @dataclasses.dataclass
    class KVConnectorStats:
        data: dict = dataclasses.field(default_factory=dict)

    class KVConnectorPromMetrics:
        def __init__(self, vllm_config, metric_types, labelnames, per_engine_labelvalues):
            self._gauge_cls = metric_types[prometheus_client.Gauge]
            self._counter_cls = metric_types[prometheus_client.Counter]
            self._histogram_cls = metric_types[prometheus_client.Histogram]
            self._labelnames = labelnames
            self.per_engine_labelvalues = per_engine_labelvalues

    base = "vllm.distributed.kv_transfer.kv_connector.v1.metrics"
    parts = base.split(".")
    for i in range(1, len(parts) + 1):
        name = ".".join(parts[:i])
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[base].KVConnectorStats = KVConnectorStats
    sys.modules[base].KVConnectorPromMetrics = KVConnectorPromMetrics
    ours = "ucm.integration.vllm.prometheus"
    monkeypatch.delitem(sys.modules, ours, raising=False)
    module = importlib.import_module(ours)
    yield module
    del sys.modules[ours]
    for _, metric in module._made.values():
        prometheus_client.REGISTRY.unregister(metric)


TYPES = {
    each: each
    for each in (prometheus_client.Gauge, prometheus_client.Counter, prometheus_client.Histogram)
}


def registered(vllm, selection=None, engines=(0,)):
    values = {idx: ["tiny", str(idx)] for idx in engines}
    return vllm.UCMPromMetrics(
        None, TYPES, ["model_name", "engine"], values, selection or Selection()
    )


def shown(name, engine=0, **labels):
    labels = {"model_name": "tiny", "engine": str(engine), **labels}
    return prometheus_client.REGISTRY.get_sample_value(name, labels)


def test_what_happened_is_shown_by_the_endpoint(vllm, collector):
    prom = registered(vllm, engines=(0, 1))
    collector.looked_up(10, 2, 6, {"absent": 2}, 0.002)
    collector.moved("load", 1, 6, 1000, 0.25, {"corrupt": 1})
    stats = vllm.take(collector)
    assert vllm.take(collector) is None
    prom.observe(vllm.rebuild(stats.data).data, 1)
    assert shown("ucm:missed_blocks_total", 1, cause="absent") == 2
    assert shown("ucm:missed_blocks_total", 1, cause="hit_ratio") == 0
    assert shown("ucm:missed_blocks_total", 0, cause="absent") == 0
    assert shown("ucm:load_bytes_total", 1) == 6000
    assert shown("ucm:load_failed_blocks_total", 1, cause="corrupt") == 1
    assert shown("ucm:load_duration_sum", 1) == 250
    assert shown("ucm:load_duration_bucket", 1, le="200.0") == 0
    assert shown("ucm:load_duration_bucket", 1, le="500.0") == 1


def test_buckets_and_sums_are_exact_also_when_ranks_and_steps_are_added(vllm, collector):
    prom = registered(vllm)
    values = [1, 2, 2, 3, 5, 5, 5, 7, 100, 9999]
    total = vllm.UCMStats()
    for value in values:
        collector.observe("load_blocks_num", value)
        total = total.aggregate(vllm.take(collector))
    prom.observe(total.data)
    for limit in METRICS["load_blocks_num"].buckets:
        expected = sum(v <= limit for v in values)
        assert shown("ucm:load_blocks_num_bucket", le=str(float(limit))) == expected
    assert shown("ucm:load_blocks_num_sum") == sum(values)
    assert shown("ucm:load_blocks_num_count") == len(values)


def test_layers_are_shown_by_layer_and_rank(vllm):
    prom = registered(vllm)
    take = watching(Stats(Cache={"dump_bytes_total": 5, "frames": 8}), "tp1")
    prom.observe(take())
    assert shown("ucm:store_dump_bytes_total", layer="Cache", rank="tp1") == 5
    assert shown("ucm:store_frames", layer="Cache", rank="tp1") == 8


def test_a_layer_that_nobody_describes_is_shown_too(vllm):
    registered(vllm).observe({"gauges": {"store_depth": {"Mine|tp0": 4}}})
    assert shown("ucm:store_depth", layer="Mine", rank="tp0") == 4


def test_only_what_is_selected_is_registered(vllm):
    registered(vllm, select({"metric_prefix": "my:", "counters": ["save_blocks_total"]}))
    assert shown("my:save_blocks_total") == 0
    assert shown("my:load_blocks_total") is None
    assert shown("ucm:save_blocks_total") is None


def test_an_engine_may_be_made_again_in_the_same_process(vllm):
    registered(vllm).observe({"counters": {"load_blocks_total": {"": 3}}})
    registered(vllm).observe({"counters": {"load_blocks_total": {"": 4}}})
    assert shown("ucm:load_blocks_total") == 7
    registered(vllm, select({"histograms": [{"name": "load_speed", "buckets": [1]}]}))
    assert shown("ucm:load_speed_bucket", le="1.0") == 0
    assert shown("ucm:load_speed_bucket", le="2.0") is None


def test_stats_are_added_and_forgotten(vllm, collector):
    collector.moved("load", 1, 6, 1000, 0.25)
    stats, kept = vllm.UCMStats(), vllm.take(collector)
    assert stats.is_empty()
    data = json.dumps(kept.data)
    accumulated = vllm.rebuild(kept.data).aggregate(kept)
    assert accumulated.reduce()["load_blocks"] == 12
    assert json.dumps(kept.data) == data
    accumulated.reset()
    assert accumulated.is_empty()
    assert not kept.is_empty()
