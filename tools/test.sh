#!/usr/bin/env bash
# Runs every check, the tests last, and fails if any of them failed.
set -uo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." || exit
export LATENTVK_TUNING=off # what a user measured is not what is checked

failed=()
check() {
    local name=$1
    shift
    printf 'check: %s\n' "$name"
    "$@" || failed+=("$name")
}

check "ruff check" .venv/bin/ruff check
check "ruff format" .venv/bin/ruff format --check
check "mypy" .venv/bin/python -m mypy
check "shader statistics" .venv/bin/latentvk shaders stats --chip phoenix --exact --against results/shaders/phoenix.json
check "counts and bytes" .venv/bin/python tools/gate.py
# Two processes, whatever the machine has: most tests wait for one compiler, or one queue. Files in order, the long ones
# of tests/device first.
check "pytest" .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"

if [ "${#failed[@]}" -gt 0 ]; then
    joined=$(printf '%s, ' "${failed[@]}")
    printf 'make test: failed: %s\n' "${joined%, }" >&2
    exit 1
fi
