#!/usr/bin/env bash
# The checks that need a GPU, on the first machine that has one; options are those of scripts/gpu_check.py.
#
#   bash scripts/gpu_check.sh
#   bash scripts/gpu_check.sh device=cpu size=tiny seconds=60      try the program without a GPU
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
prepare_environment requirements.txt
exec "$PYTHON" scripts/gpu_check.py "$@"
