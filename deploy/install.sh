#!/usr/bin/env bash
# Sets this checkout up: virtual environment, locked packages, compiled planner kernels, model folder.
# Idempotent: each stage leaves a stamp with a hash of what it was made from and is skipped while that is unchanged.
#
#   deploy/install.sh [--set cpu|controller] [--venv DIR] [--packages-only]
#
# PYTHON=...               interpreter to use (3.11 or newer)
# SLOS_STATE_DIR=...       where models and logs go (default: .slos)
# PIP_EXTRA_INDEX_URL=...  pip's own setting; must name PyTorch's CPU index where pip is not configured for it
set -euo pipefail
cd "$(dirname "$0")/.."

package_set=cpu venv=.venv packages_only=no
while [ $# -gt 0 ]; do
    case "$1" in
        --set) package_set=$2; shift 2 ;;
        --venv) venv=$2; shift 2 ;;
        --packages-only) packages_only=yes; shift ;;
        *) echo "install.sh: unknown argument $1 (see the head of this file)" >&2; exit 2 ;;
    esac
done
lock="deploy/requirements/$package_set.txt"
[ -f "$lock" ] || { echo "install.sh: no lock $lock; sets are: $(cd deploy/requirements && echo *.txt)" >&2; exit 2; }
state=${SLOS_STATE_DIR:-.slos}
log="$state/log/setup-packages.log"
mkdir -p "$state/log" "$state/models"

say() { printf 'setup: %s\n' "$*"; }
hash_of() { cat "$@" 2>/dev/null | sha256sum | cut -d' ' -f1; }
fail() {
    say "$1 failed; the last lines of $log:" >&2
    tail -n 15 "$log" >&2
    exit 1
}

# One setup at a time for one checkout.
if command -v flock >/dev/null; then
    exec 9>"$state/install.lock"
    flock -n 9 || { say "another setup is running, waiting for it (at most 15 minutes)"; flock -w 900 9; }
fi

python=${PYTHON:-}
if [ -z "$python" ]; then
    for candidate in python3.11 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
fi
[ -n "$python" ] || { say "no Python 3.11 or newer found; install one or set PYTHON=/path/to/python3.11" >&2; exit 1; }

# The planner needs three packages of the lock: compiled beside the installation of all others, it costs no time.
packages_want=$(hash_of "$lock" pyproject.toml deploy/install.sh)
planner=

compile_planner() {
    local stamp="$venv/.setup-planner" log="$state/log/setup-planner.log" began=$SECONDS want
    want=$( (find scheduling -name '*.py' -print0 | sort -z | xargs -0 cat; echo "$packages_want") | hash_of -)
    if [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then return 0; fi
    say "compiling the planner (one to two minutes)"
    "$venv/bin/python" -m scheduling.compile >"$log" 2>&1 || fail "compiling the planner"
    echo "$want" >"$stamp"
    say "planner compiled in $((SECONDS - began)) s"
}

pip_install() { "$venv/bin/python" -m pip install --no-deps --no-input --disable-pip-version-check "$@"; }

# Packages -----------------------------------------------------------------------------------------------------------
stamp="$venv/.setup-packages"
if [ "$(cat "$stamp" 2>/dev/null)" != "$packages_want" ]; then
    began=$SECONDS
    if ! "$venv/bin/python" -c '' 2>/dev/null; then
        say "creating $venv with $("$python" -V)"
        "$python" -m venv --clear "$venv" >"$log" 2>&1 || fail "creating $venv"
    fi
    total=$(grep -c == "$lock")
    say "installing $total packages (log: $log)"
    if [ "$packages_only" = no ]; then
        # shellcheck disable=SC2046
        pip_install --no-compile -q $(grep -E '^(llvmlite|numba|numpy)==' "$lock") >"$log" 2>&1 || fail "installing packages"
        compile_planner 9>&- &
        planner=$!
    fi
    # --no-deps: the lock is complete, and some packages' own requirements are wrong for a CPU (see deploy/lock.py).
    # Python files are compiled on first import instead of here, which halves the time.
    if ! pip_install --no-compile --progress-bar off -r "$lock" 2>&1 | tee "$log" | awk -v total="$total" '
            /^(Collecting|Processing|Requirement already satisfied)/ { n++; if (n % 25 == 0) { printf "setup:   %d of %d\n", n, total; fflush() } }
            /^Installing collected/ { print "setup:   unpacking"; fflush() }'; then
        if grep -qE '(No matching distribution found for|Cannot install) torch==' "$log"; then
            say "pip does not find torch's CPU build. It is on PyTorch's own CPU index: set PIP_EXTRA_INDEX_URL to that" >&2
            say "index (its address stands on pytorch.org under 'Get started', compute platform CPU) and run this again." >&2
            exit 1
        fi
        fail "installing packages"
    fi
    pip_install --no-build-isolation -q -e . >>"$log" 2>&1 || fail "installing this project"
    echo "$packages_want" >"$stamp"
    say "packages installed in $((SECONDS - began)) s"
fi

[ "$packages_only" = no ] || exit 0

# Planner and model, at the same time --------------------------------------------------------------------------------
convert_model() {
    local name=smollm2-135m-instruct
    local stamp="$state/models/.setup-$name" log="$state/log/setup-model.log" began=$SECONDS want
    want=$(hash_of engine/vllm/model.py)
    if [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && [ -f "$state/models/$name/config.json" ]; then return 0; fi
    say "converting SmolLM2-135M-Instruct into $state/models/$name"
    "$venv/bin/python" -m engine.vllm.model --out "$state/models/$name" >"$log" 2>&1 || fail "converting the model"
    echo "$want" >"$stamp"
    say "model ready in $((SECONDS - began)) s"
}

if [ -z "$planner" ]; then
    compile_planner 9>&- &
    planner=$!
fi
converted=0
if [ "$package_set" = cpu ]; then
    (convert_model) || converted=1
fi
wait "$planner" || exit 1
exit "$converted"
