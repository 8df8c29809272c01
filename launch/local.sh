#!/usr/bin/env bash
# One machine, all its devices:  launch/local.sh spsw:apl runs/spsw [--config.NAME=VALUE ...]
# Run it again after any interruption; it goes on where it was.
set -euo pipefail
config=$1 workdir=$2
shift 2
exec apl-jax run --config="$config" --workdir="$workdir" "$@"
