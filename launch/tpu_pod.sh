#!/usr/bin/env bash
# All workers of a TPU pod slice:  TPU=name ZONE=zone launch/tpu_pod.sh spsw:apl /mnt/shared/runs/spsw
# Needs apl_jax installed on the workers (pip install '.[tpu]') and a --workdir that all of them see.
# Not run on a pod by us; the same two-process start is tested on CPU in tests/distributed.
set -euo pipefail
: "${TPU:?name of the TPU}" "${ZONE:?its zone}"
config=$1 workdir=$2
shift 2
command=$(printf '%q ' apl-jax run --config="$config" --workdir="$workdir" --config.runtime.distributed=auto \
  --config.runtime.progress=False "$@")
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$command"
