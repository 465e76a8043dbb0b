#!/usr/bin/env bash
# Fetches what the SGMV benchmark compares itself with into peers/gpu, which git ignores: none of it is ours.
# Needs pip and git, and nvcc for Punica. A part that fails leaves the others; the benchmark says which are missing.
set -uo pipefail
cd "$(dirname "$0")/.."
target=peers/gpu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$target"
python=${PYTHON:-python3}
punica=${PUNICA_GIT:-https://github.com/punica-ai/punica}
flashinfer=${FLASHINFER_GIT:-https://github.com/flashinfer-ai/flashinfer}
arch=${CUDA_ARCH:-sm_90}

download() { # what pip calls it; sources only, nothing is built or installed
  "$python" -m pip download --disable-pip-version-check -q --no-deps -d "$work" "$@"
}

vllm() {
  download --no-binary vllm vllm==0.33.0 &&
    tar xzf "$work"/vllm-*.tar.gz -C "$work" --wildcards '*/vllm/lora/ops/triton_ops/*' '*/LICENSE' &&
    rm -rf "$target/vllm" && mv "$work"/vllm-0.33.0/vllm "$target/vllm" && cp "$work"/vllm-0.33.0/LICENSE "$target/vllm/"
}

sglang() {
  download --only-binary sglang --python-version 3.11 --platform manylinux_2_34_x86_64 sglang==0.5.23 &&
    rm -rf "$target/sglang" &&
    "$python" - "$work" "$target" <<'PYTHON'
import glob, sys, zipfile
work, target = sys.argv[1:]
with zipfile.ZipFile(glob.glob(f"{work}/sglang-*.whl")[0]) as wheel:
    wanted = ("sglang/kernels/ops/lora/common/", "sglang/kernels/ops/lora/dense/", "sglang/srt/lora/dense/")
    names = [n for n in wheel.namelist() if n.startswith(wanted) or n == "sglang/srt/lora/workspace.py" or "LICENSE" in n]
    wheel.extractall(target, names)
PYTHON
}

punica() {
  command -v nvcc > /dev/null || { echo "Punica needs nvcc, which is not here"; return 1; }
  git clone -q "$punica" "$work/punica" && git -C "$work/punica" checkout -q 591b598 &&
    git clone -q "$flashinfer" "$work/flashinfer" && git -C "$work/flashinfer" checkout -q 89a761f || return 1
  download nvidia-cutlass==4.2.0.0 && "$python" -m zipfile -e "$work"/nvidia_cutlass-*.whl "$work/cutlass" || return 1
  # Its stmatrix instruction lacks the empty list of outputs, which newer compilers insist on.
  sed -i 's/^\( *\): "r"(smem_int_ptr), "r"(R\[0\])/\1: : "r"(smem_int_ptr), "r"(R[0])/' \
    "$work/flashinfer/include/flashinfer/mma.cuh"
  nvcc -shared -Xcompiler -fPIC -O3 -std=c++17 -arch="$arch" --expt-relaxed-constexpr \
    -I "$work/punica/csrc" -I "$work/flashinfer/include" -I "$work/cutlass/cutlass_library/source/include" \
    kernels/bench/peers/punica_door.cu -o "$target/punica.so"
}

failed=0
for peer in vllm sglang punica; do
  if (set -e; "$peer"); then echo "$peer: $target"; else echo "$peer: could not be fetched"; failed=1; fi
done
exit $failed
