#!/usr/bin/env bash
# Runs the device tests with every shader instrumented to report accesses outside its buffers (GPU-assisted validation).
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

# Instrumented shaders compile several times slower: their loops are not unrolled (tests/device/conftest.py), and lavapipe
# leaves out LLVM's optimisations. Left out is what runs no kernel that the others do not: the commands and the
# shader loop, which run the same programs in processes of their own, kernels broken on purpose, other tilings of the
# same kernels, and tests of failures, leaks, losses and time; and the model of all tensor types, whose products with
# each type take minutes to compile (tests/device/helpers.py).
left_out=()
for name in broken_kernels commands diagnose_run shader_bench watch tuned_sessions failures leaks loss time listing mixed_types; do
    left_out+=("--ignore=tests/device/test_$name.py")
done

left_out+=("--deselect=tests/device/test_linear.py::test_products_on_subgroups_of_sixteen") # the same, in a process

export LATENTVK_VALIDATE=core,gpu
export VK_LAYER_SETTINGS_PATH=$PWD/tools/gpu_validation.txt
export GALLIVM_PERF=nopt
exec .venv/bin/python -m pytest tests/device "${left_out[@]}" "$@"
