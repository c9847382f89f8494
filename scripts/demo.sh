#!/usr/bin/env bash
# Serve a DeepSeek-V3-architecture model with the plugin, on a plain CPU: bash scripts/demo.sh --help
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
source "$ROOT/scripts/prepare.sh"
exec "$PYTHON" "$ROOT/scripts/demo.py" "$@"
