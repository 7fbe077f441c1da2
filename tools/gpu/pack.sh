#!/usr/bin/env bash
# Pack what a GPU machine without network lacks to run vLLM, in as few parts as a limit on a transfer's size allows.
#
# usage: pack.sh HAVE FOLDER
#
#   HAVE    what `setup.sh --have` printed on that machine: its Python, and the packages that are there already
#   FOLDER  where part.00, part.01, … and SHA256SUMS are written
#
# from the environment:
#   LIMIT_MIB        the largest part; 56, which leaves room for this repository where a transfer may carry 64
#   FLASH_ATTENTION  which kernels are kept: 3 (the default: Hopper) or 2 (other GPUs; not tried)
#   VLLM             a requirement, such as vllm==0.26.0; the default is the newest release made for that machine's torch
#
# Takes 2 to 5 minutes, 5 GB of disk, and uv: `pip install uv`, which the extra `test` brings. uv asks the package index
# that it is configured for (UV_DEFAULT_INDEX; it does not read pip's configuration).
#
# vLLM with all that it asks for is several gigabytes. Three things make it about 90 MB. What is there is not packed:
# its versions take the place of those that vLLM asks for, only torch's decides which vLLM it is. What one dense model
# on one GPU has no use for is left out, see below. And xz.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

if [ $# -ne 2 ] || [ ! -f "$1" ]; then
    echo "usage: $0 HAVE FOLDER   (HAVE: what setup.sh --have printed on the GPU machine)" >&2
    exit 2
fi
have=$1
folder=$2
limit=$((${LIMIT_MIB:-56} * 1024 * 1024))
vllm=${VLLM:-vllm}
keep=${FLASH_ATTENTION:-3}

# Packages that are imported by none of what is run here: kernels for other models and other ways to compile them, a
# faster loader of weights, video, and the command-line server's company.
unused_packages="flashinfer-python flashinfer-cubin nvidia-cutlass-dsl nvidia-cudnn-frontend quack-kernels tilelang
    tokenspeed-mla tokenspeed-triton cuda-tile humming-kernels fastsafetensors torchcodec pynvvideocodec
    fastapi-cloud-cli sentry-sdk"
# Parts of vLLM itself: mixtures of experts, MLA, MXFP4 and DeepGEMM, the server written in Rust.
unused_files="vllm/_moe_C* vllm/vllm_flash_attn/_vllm_fa$((5 - keep))_C* vllm/_flashmla* vllm/_qutlass* vllm/vllm-rs
    vllm/third_party/deep_gemm"

if command -v uv >/dev/null; then
    uv=(uv)
elif [ -x "$here/../../.venv/bin/uv" ]; then
    uv=("$here/../../.venv/bin/uv")
else
    echo "uv is needed to resolve packages for another machine: pip install uv" >&2
    exit 1
fi
told() { # told WORD: what HAVE says of the machine in its line "# WORD VALUE"
    local value
    value=$(sed -n "s/^# $1 //p" "$have")
    if [ -z "$value" ]; then
        echo "$have does not tell the machine's $1: it has to be what setup.sh --have prints" >&2
        exit 1
    fi
    printf '%s' "$value"
}
python=$(told python)
machine="$(told machine)-manylinux_$(told glibc)"
torch=$(sed -n 's/^\(torch==[0-9.]*\).*/\1/p' "$have")
if [ -z "$torch" ]; then
    echo "$have has no torch: the packages that make up CUDA would have to travel too, some gigabytes" >&2
    exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$folder"
rm -f "$folder"/part.* "$folder/SHA256SUMS"

# A local version such as 2.11.0+cu130 is on no index; its packages are there, so nothing is lost by dropping it.
grep -v '^#' "$have" | sed 's/+.*//' | sort -u >"$work/have"
{
    grep -v '^torch==' "$work/have"
    for package in $unused_packages; do
        grep -q "^$package==" "$work/have" || echo "$package ; sys_platform == 'never'"
    done
} >"$work/override"
echo "$torch" >"$work/constraint"
# What the library itself needs, and the tests: as pyproject.toml has them, less the vendors' SDKs and test servers.
printf '%s\n' "$vllm" anyio httpcore httpx pydantic tenacity hypothesis pytest trio >"$work/wanted"

about=(--quiet --python-version "$python" --python-platform "$machine" --only-binary :all:)
"${uv[@]}" pip compile "${about[@]}" --no-header --no-annotate --constraint "$work/constraint" \
    --override "$work/override" "$work/wanted" >"$work/resolved"
grep -vxF -f "$work/have" "$work/resolved" >"$work/missing"
echo "$(grep '^vllm==' "$work/missing") for $torch; to be packed: $(wc -l <"$work/missing") of" \
    "$(wc -l <"$work/resolved") packages that it runs with"

"${uv[@]}" pip install "${about[@]}" --no-deps --target "$work/site" --requirement "$work/missing"
for file in $unused_files; do
    # shellcheck disable=SC2086 # patterns
    rm -rf "$work"/site/$file
done
find "$work/site" -name __pycache__ -prune -exec rm -rf {} +
rm -rf "$work/site/bin" "$work/site/.lock"
echo "unpacked: $(du -sm "$work/site" | cut -f1) MB"

tar -C "$work/site" --sort=name --owner=0 --group=0 -cf - . | xz -T0 -6 >"$work/packed"
size=$(stat -c %s "$work/packed")
split --numeric-suffixes --suffix-length=2 --number=$(((size + limit - 1) / limit)) "$work/packed" "$folder/part."
(cd "$folder" && sha256sum part.* >SHA256SUMS)
ls -l "$folder"
