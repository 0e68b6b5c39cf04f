#!/usr/bin/env bash
# Test on several GPUs of one or more machines: dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]
# On several machines, run it on each with NNODES, NODE_RANK, MASTER_ADDR and PORT set.
# On a machine without a GPU, GPUS is the number of processes on its CPU; they communicate by gloo.
set -eu
CONFIG=$1 CHECKPOINT=$2 GPUS=$3
exec python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" --nproc_per_node="$GPUS" \
    "$(dirname "$0")/test.py" "$CONFIG" "$CHECKPOINT" --launcher pytorch "${@:4}"
