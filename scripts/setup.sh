#!/usr/bin/env bash
# Sets up a Debian machine: packages, .venv with the distribution's Python, this project, Caffe (build_caffe.py).
# If nothing has changed since the last run, it does nothing. `setup.sh caffe` checks again for a GPU, cuDNN and NCCL.
# `setup.sh browser` installs the browser that the tests need.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
stamp=$venv/share/bonecaffe/setup.done
python=/usr/bin/python3 # the distribution's, because Boost.Python is built for it
run_time=(python3 python3-venv)
build_time=(python3-dev g++ make cmake pkg-config dpkg-dev ca-certificates
  libboost-python-dev libboost-filesystem-dev libboost-thread-dev libboost-system-dev
  libopencv-dev libprotobuf-dev protobuf-compiler
  libgoogle-glog-dev libgflags-dev libhdf5-dev liblmdb-dev libopenblas-dev)

browser=(chromium chromium-driver) # without them the tests of web pages are skipped

say() { printf 'setup: %s\n' "$*"; }

# Whether Caffe is built for a GPU: as in the last `make caffe GPU=…`, otherwise as the machine allows.
export BONECAFFE_GPU=${BONECAFFE_GPU:-$(cat "$venv/share/bonecaffe/gpu" 2>/dev/null || echo auto)}
# Whether its CPU part uses all cores (1) or Caffe's own loops (0): as in the last FAST=…, otherwise 1.
export BONECAFFE_FAST=${BONECAFFE_FAST:-$(cat "$venv/share/bonecaffe/fast" 2>/dev/null || echo 1)}

state() { # everything that a finished setup depends on
  sha256sum pyproject.toml requirements.txt scripts/{setup.sh,build_caffe.py} scripts/builder/*.py \
    scripts/caffe_edits.py scripts/caffe_parallel.{py,hpp} scripts/caffe_cuda.h
  echo "gpu=$BONECAFFE_GPU fast=$BONECAFFE_FAST arch=${CUDA_ARCH:-} cuda=${CUDA_HOME:-${CUDA_PATH:-}}"
  echo "cudnn=${CUDNN:-}${CUDNN_ROOT:-} nccl=${NCCL:-}${NCCL_ROOT:-${NCCL_DIR:-}}"
  if [ "$BONECAFFE_GPU" != 0 ]; then
    echo "nvcc=$(command -v nvcc || true) driver=$(head -n 1 /proc/driver/nvidia/version 2>/dev/null || true)"
  fi
  echo "root=${CAFFE_ROOT:-} source=${CAFFE_SOURCE:-} cache=${BONECAFFE_CACHE:-} here=$PWD"
}
has_caffe() { "$venv/bin/python" -c 'from bonecaffe.caffe import installation; installation.find()' 2>/dev/null; }
if [ -z "${1:-}" ] && [ -f "$stamp" ] && [ "$(state)" = "$(cat "$stamp")" ] && has_caffe; then exit 0; fi

packages() { # installs missing packages, or prints the command for it if this user may not
  local -a missing=()
  local package
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  command -v apt-get >/dev/null || { say "these packages are missing, and this is not Debian: ${missing[*]}. Install them and run this again."; exit 1; }
  local -a as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
      as_root=(sudo)
    else
      say "packages are missing, and this user may not install them. Ask an administrator to run this, then try again:"
      say "  apt-get install --no-install-recommends ${missing[*]}"
      exit 1
    fi
  fi
  say "installing ${#missing[@]} Debian packages: ${missing[*]}"
  local log
  log=$(mktemp)
  if ! { "${as_root[@]}" apt-get update && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y --no-install-recommends "${missing[@]}"; } > "$log" 2>&1; then
    tail -n 15 "$log"
    say "apt-get failed; the complete log: $log"
    exit 1
  fi
  rm -f "$log"
}

if [ "${1:-}" = browser ]; then
  (packages "${browser[@]}") || say "continuing without a browser; the tests of web pages will be skipped"
  exit 0
fi

began=$SECONDS
# A user who seems to have a Caffe needs no packages to build one. build_caffe.py checks that Caffe below.
if [ -n "${CAFFE_ROOT:-}" ] || command -v caffe >/dev/null; then
  packages "${run_time[@]}"
else
  packages "${run_time[@]}" "${build_time[@]}"
fi
version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }
is_usable() { [ -x "$1" ] && "$1" -m pip --version >/dev/null 2>&1 && [ "$(version "$1")" = "$(version "$python")" ]; }
if ! is_usable "$venv/bin/python"; then
  say "making $venv on $($python --version)"
  rm -rf "$venv"
  $python -m venv "$venv"
fi
say "installing bonecaffe and its pinned dependencies"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement requirements.txt \
  --editable '.[test,lint]' --constraint requirements.txt

choose_caffe() { "$PWD/$venv/bin/python" scripts/build_caffe.py --note "$@"; }
given=$(choose_caffe --given)
if [ -z "$given" ]; then
  packages "${build_time[@]}"
  choose_caffe > /dev/null
fi
mkdir -p "$venv/share/bonecaffe"
echo "$BONECAFFE_GPU" > "$venv/share/bonecaffe/gpu"
echo "$BONECAFFE_FAST" > "$venv/share/bonecaffe/fast"
if ! "$venv/bin/bonecaffe" doctor > "$venv/share/bonecaffe/doctor.txt"; then
  cat "$venv/share/bonecaffe/doctor.txt"
  exit 1
fi
state > "$stamp"
say "ready after $((SECONDS - began)) s; see $venv/bin/bonecaffe doctor"
