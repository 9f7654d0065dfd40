#!/usr/bin/env bash
# Lint and fast tests in .venv; arguments go to pytest (for example: -m slow).
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
prepare_environment requirements-dev.txt
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
# One thread per worker: tests are many small operations, and the numbers do not depend on the machine's core count.
export OMP_NUM_THREADS=1
exec "$PYTHON" -m pytest -n "${TEST_WORKERS:-2}" --dist loadfile -q "$@"
