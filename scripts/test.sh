#!/usr/bin/env bash
# Lint, types and the registered CPU suite: bash scripts/test.sh [run_suite.py options]
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
source "$ROOT/scripts/prepare.sh"
cd "$ROOT"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
exec "$PYTHON" scripts/run_suite.py --hw cpu --suite base-a-test-cpu "$@"
