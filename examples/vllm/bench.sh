#!/bin/sh
# Sends 4 random prompts of 2,000 tokens to a served model: bench.sh MODEL [more arguments]
# Run it twice: the second time every prompt is found.
set -eu
model=$1
shift
exec ${VLLM:-vllm} bench serve \
    --backend vllm \
    --model "$model" \
    --host 127.0.0.1 \
    --dataset-name random \
    --num-prompts 4 \
    --random-input-len 2000 \
    --random-output-len 2 \
    --request-rate inf \
    --seed 123456 \
    --percentile-metrics ttft,tpot,itl,e2el \
    --metric-percentiles 90,99 \
    --ignore-eos "$@"
