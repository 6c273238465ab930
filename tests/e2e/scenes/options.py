"""Every top-level key of the configuration does in an engine what it says.

Those that say how blocks move are in the scene `modes`; `hit_ratio` is there and in `offload`.
"""

import json
import re

from engines import BLOCK, same, transfer
from place import check, say

SHORT, LONG, THRESHOLD = 800, 2000, 1000  # tokens
METRICS = """\
metric_prefix: "ucm:"
counters:
  - name: hit_blocks_total
  - name: missed_blocks_total
enabled_metrics:
  gauges: false
  histograms: false
"""


def run(test):
    storage = test.folder / "blocks"
    storage.mkdir()
    prompts = test.place.prompts("tiny", 2, LONG)
    with test.engines.start("options-none", enable_prefix_caching=True) as plain:
        plain.run(prompts)
        right = plain.run(prompts)
        cold = plain.run([prompts[0][:SHORT]], salt="other")
    several(test, storage, prompts, right, cold)
    salted(test, prompts[0], right[0])
    lite(test, prompts)
    return "as promised"


def several(test, storage, prompts, right, cold):
    """The keys that say what is kept, counted and recorded."""
    (test.folder / "metrics.yaml").write_text(METRICS)
    options = {
        "enable_event_sync": True,
        "enable_record_traces": True,
        "persist_token_threshold": THRESHOLD,
        "metrics_config_path": str(test.folder / "metrics.yaml"),
    }
    config = transfer(storage, options=options, audited=True)
    events = {"enable_kv_cache_events": True, "endpoint": f"ipc://{test.folder}/events"}
    with test.engines.start(
        "options-several", transfer=config, kv_events_config=events,
        environment={"UCM_LOG_PATH": str(test.folder / "traces")},
    ) as engine:  # fmt: skip
        short = engine.run([prompts[0][:SHORT]] * 2)
        long = engine.run([prompts[1], prompts[1]])
        log, shown, told = engine.text(), engine.endpoint(), engine.spent()["events"]
        hits = [engine.hits(length // BLOCK) for length in (SHORT, LONG)]
    for result in short:
        same("options: a short prompt", result, cold[0])
    same("options: a long prompt", long[1], right[1])
    few, many = SHORT // BLOCK, LONG // BLOCK
    wanted = [[(few, 0, 0)] * 2, [(many, 0, 0), (many, 0, many)]]
    check(hits == wanted, f"persist_token_threshold: found {hits}")
    check("enable_event_sync: no effect yet, because" in log, "enable_event_sync: nothing is said")
    lines = [line for line in shown.splitlines() if line.startswith("ucm:")]
    also = [line for line in lines if not re.match("ucm:(hit|missed)_blocks_(total|created)", line)]
    check(not also, f"metrics_config_path: also shown: {also}")
    for part, value in (
        ('hit_blocks_total{engine="0",', many),
        ('cause="persist_token_threshold"', 2 * few),
        ('cause="absent"', many),
    ):
        found = [line for line in lines if part in line and line.endswith(f" {float(value)}")]
        check(found, f"metrics_config_path: no {part} of {value} in {lines}")
    (trace,) = (test.folder / "traces").glob("ucm-trace-*.jsonl")
    records = [json.loads(line) for line in trace.read_text().splitlines()]
    found = [(r["input_length"], r["output_length"], len(r["hash_ids"])) for r in records]
    wanted = [(10, 2, 0), *[(SHORT, 8, few)] * 2, *[(LONG, 8, many)] * 2]
    check(found == wanted, f"enable_record_traces: {found}")
    check(told == [f"STORAGE {BLOCK}"] * many, f"kv_events_config: told of {told}")
    say("options: thresholds, metrics, traces and events as they are asked for")


def salted(test, prompt, right):
    """What one tenant stored, another one does not find."""
    storage = test.folder / "salted"
    storage.mkdir()
    with test.engines.start("options-salted", transfer=transfer(storage)) as engine:
        for salt in ("one", "two", None):
            engine.run([prompt], salt=salt)
        (again,) = engine.run([prompt], salt="two")
        found = [hit[2] for hit in engine.hits(LONG // BLOCK)]
    check(found == [0, 0, 0, LONG // BLOCK], f"cache_salt: found {found}")
    same("cache_salt: found again", again, right)
    say("options: what has a salt is found with that salt alone")


def lite(test, prompts):
    """Hits are counted, nothing is kept."""
    entry = {
        "ucm_connector_name": "UcmPipelineStore",
        "ucm_connector_config": {"store_pipeline": "Fake"},
    }
    extra = {"ucm_connectors": [entry], "use_lite": True}
    config = transfer(None, kv_connector_extra_config=extra)
    with test.engines.start("options-lite", transfer=config) as engine:
        once, twice = engine.run([prompts[0], prompts[0]])
        hits, counted = engine.hits(LONG // BLOCK), engine.metrics()
        check(not engine.segments, f"use_lite: it has shared memory: {engine.segments}")
    same("use_lite: a prompt that was counted", twice, once)
    blocks = LONG // BLOCK
    check(hits == [(blocks, 0, 0), (blocks, 0, blocks)], f"use_lite: counted {hits}")
    loaded = counted.get("vllm:external_prefix_cache_hits", 0)
    check(not loaded, f"use_lite: {loaded} tokens were loaded")
    say(f"options: use_lite counts {hits} and loads nothing")
