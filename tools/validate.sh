#!/usr/bin/env bash
# Runs the device tests with every shader instrumented to report accesses outside its buffers (GPU-assisted validation).
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

export LATENTVK_VALIDATE=core,gpu
export VK_LAYER_SETTINGS_PATH=$PWD/tools/gpu_validation.txt
exec .venv/bin/python -m pytest tests/device "$@"
