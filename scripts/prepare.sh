# Sourced by demo.sh and test.sh: leaves in $PYTHON an environment with SGLang and ourselves.
# VENV=<folder> puts the environment elsewhere than .venv; PYTHON=<interpreter> picks the base.
VENV=${VENV:-$ROOT/.venv}
NEEDED_GB=16

fail() { echo "$(basename "$0"): $*" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
            2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or newer with venv and pip found; install one" \
        "(on Debian: apt-get install python3-venv), or name it: PYTHON=/path/to/python $0"
}

# Run a quiet command with a line that shows that it is alive; its output goes to a log.
with_progress() {
    local label=$1 log=$2 started=$SECONDS
    shift 2
    "$@" >"$log" 2>&1 &
    local job=$! line_start='' line_end=$'\n' pause_s=20
    [ -t 1 ] && line_start=$'\r' line_end=' ' pause_s=2
    while kill -0 $job 2>/dev/null; do
        printf '%s%s: %d s, %s on disk%s' "$line_start" "$label" $((SECONDS - started)) \
            "$(du -sh "$VENV" 2>/dev/null | cut -f1)" "$line_end"
        sleep "$pause_s"
    done
    [ -t 1 ] && echo
    wait $job || fail "$label failed; $log ends with
$(tail -n 20 "$log")"
}

prepare() {
    local wanted have free_gb
    wanted=$(cat "$ROOT/pyproject.toml" "$ROOT/test/cpu_platform/pyproject.toml" | cksum)
    have=$(cat "$VENV/prepared" 2>/dev/null || true)
    if [ "$wanted" != "$have" ]; then
        free_gb=$(($(df -Pk "$(dirname "$VENV")" | awk 'NR==2{print $4}') / 1048576))
        [ "$free_gb" -ge "$NEEDED_GB" ] || [ -d "$VENV" ] ||
            fail "$free_gb GB free at $VENV, expected $NEEDED_GB: SGLang with PyTorch takes 12"
        echo "Preparing $VENV: SGLang 0.5.23 and PyTorch, 12 GB, a few minutes the first time"
        [ -x "$VENV/bin/python" ] || "$(find_python)" -m venv "$VENV"
        with_progress "installing" "$VENV/install.log" \
            "$VENV/bin/python" -m pip install --no-input \
            -e "$ROOT[sglang,dev]" -e "$ROOT/test/cpu_platform"
        echo "$wanted" >"$VENV/prepared"
    fi
    PYTHON=$VENV/bin/python
}

prepare
