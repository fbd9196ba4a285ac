#!/usr/bin/env bash
# Provisions a machine: packages, .venv on the distribution's own Python, this project, Caffe (build_caffe.py).
# On Debian and Ubuntu it installs what is missing; elsewhere it needs a Caffe in CAFFE_ROOT or on PATH.
# Run again with nothing changed, it does nothing; `setup.sh caffe` looks again, for another GPU, cuDNN or NCCL.
# `setup.sh browser` installs the browser of the tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
stamp=$venv/share/bonecaffe/setup.done
run_time=(python3 python3-venv)
build_time=(python3-dev g++ make cmake pkg-config ca-certificates
  libboost-python-dev libboost-filesystem-dev libboost-thread-dev 'libboost-system-dev?'
  libopencv-dev libprotobuf-dev protobuf-compiler
  libgoogle-glog-dev libgflags-dev libhdf5-dev liblmdb-dev libopenblas-dev)

browser=(chromium chromium-driver) # Debian's; the tests of web pages are skipped without it
. scripts/machine.sh

# Whether Caffe is built for a GPU: as in the last `make caffe GPU=…`, otherwise as the machine allows.
export BONECAFFE_GPU=${BONECAFFE_GPU:-$(cat "$venv/share/bonecaffe/gpu" 2>/dev/null || echo auto)}
# Whether its CPU part uses all cores (1) or Caffe's own loops (0): as in the last FAST=…, otherwise 1.
export BONECAFFE_FAST=${BONECAFFE_FAST:-$(cat "$venv/share/bonecaffe/fast" 2>/dev/null || echo 1)}
# Which compute capabilities it is built for: as in the last CUDA_ARCH=…; `make caffe` without it asks the GPUs again.
[ "${1:-}" = caffe ] || export CUDA_ARCH=${CUDA_ARCH:-$(cat "$venv/share/bonecaffe/arch" 2>/dev/null || true)}

state() { # all that a finished setup depends on
  sha256sum pyproject.toml requirements.txt scripts/{setup.sh,machine.sh,build_caffe.py} scripts/builder/*.py \
    scripts/caffe_edits.py scripts/caffe_parallel.{py,hpp} scripts/caffe_cuda.h
  echo "gpu=$BONECAFFE_GPU fast=$BONECAFFE_FAST arch=${CUDA_ARCH:-} cuda=${CUDA_HOME:-${CUDA_PATH:-}}"
  echo "cudnn=${CUDNN:-}${CUDNN_ROOT:-} nccl=${NCCL:-}${NCCL_ROOT:-${NCCL_DIR:-}}"
  if [ "$BONECAFFE_GPU" != 0 ] && [ -z "${CAFFE_ROOT:-}" ]; then # a given Caffe is not built again
    echo "nvcc=$(command -v nvcc || true) $(echo /usr/local/cuda*)"
    echo "driver=$(head -n 1 /proc/driver/nvidia/version 2>/dev/null || true) $(echo /dev/dx[g])"
  fi
  echo "python=${PYTHON:-} root=${CAFFE_ROOT:-} source=${CAFFE_SOURCE:-} cache=${BONECAFFE_CACHE:-} here=$PWD"
}
has_caffe() { "$venv/bin/python" -c 'from bonecaffe.caffe import installation; installation.find()' 2>/dev/null; }
if [ -z "${1:-}" ] && [ -f "$stamp" ] && [ "$(state)" = "$(cat "$stamp")" ] && has_caffe; then exit 0; fi

if [ "${1:-}" = browser ]; then
  if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then exit 0; fi
  (is_debian && packages "${browser[@]}") || say "continuing without a browser; the tests of web pages will be skipped"
  exit 0
fi

began=$SECONDS
refuse_old_ubuntu
install() { packages "$@" || { [ $? = 1 ] || say "$ways_without_packages"; exit 1; }; }
# Who seems to have a Caffe needs no packages to build one; build_caffe.py looks properly, below.
if [ -n "${CAFFE_ROOT:-}" ] || command -v caffe >/dev/null; then
  has_venv() { "$(choose_python)" -c 'import ensurepip, venv'; }
  has_venv >/dev/null 2>&1 || ! is_debian || install "${run_time[@]}"
  python=$(choose_python)
else
  is_debian || stop "$(name_of_system): packages can be installed on Debian and Ubuntu alone. $ways_without_packages"
  install "${run_time[@]}" "${build_time[@]}"
  python=$(choose_python build)
fi
is_usable() { [ -x "$1" ] && "$1" -m pip --version >/dev/null 2>&1 && [ "$(version "$1")" = "$(version "$python")" ]; }
if ! is_usable "$venv/bin/python"; then
  say "making $venv on $("$python" --version)"
  rm -rf "$venv"
  "$python" -m venv "$venv"
fi
say "installing bonecaffe and its pinned dependencies"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement requirements.txt \
  --editable '.[test,lint]' --constraint requirements.txt
provide_opencv "$venv/bin/python"

choose_caffe() { "$PWD/$venv/bin/python" scripts/build_caffe.py --note "$@"; }
given=$(choose_caffe --given)
if [ -z "$given" ]; then
  is_debian || stop "the caffe on PATH does not work. $ways_without_packages"
  install "${build_time[@]}"
  choose_caffe > /dev/null
fi
mkdir -p "$venv/share/bonecaffe"
echo "$BONECAFFE_GPU" > "$venv/share/bonecaffe/gpu"
echo "$BONECAFFE_FAST" > "$venv/share/bonecaffe/fast"
echo "${CUDA_ARCH:-}" > "$venv/share/bonecaffe/arch"
if ! "$venv/bin/bonecaffe" doctor > "$venv/share/bonecaffe/doctor.txt"; then
  cat "$venv/share/bonecaffe/doctor.txt"
  exit 1
fi
state > "$stamp"
say "ready after $((SECONDS - began)) s; see $venv/bin/bonecaffe doctor"
