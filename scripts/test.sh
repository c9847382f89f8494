#!/usr/bin/env bash
# Lint, types, the registered XPU suite on a simulated XPU, and the registered CPU suite:
#   bash scripts/test.sh [options of run_suite.py, for the CPU suite]
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
source "$ROOT/scripts/prepare.sh"
cd "$ROOT"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
"$PYTHON" scripts/run_suite.py --hw xpu --suite stage-b-test-1-gpu-xpu --simulated
exec "$PYTHON" scripts/run_suite.py --hw cpu --suite base-a-test-cpu "$@"
