#!/usr/bin/env bash
# Provisions a Debian machine: packages, .venv on the distribution's own Python, this project, Caffe.
# Run again with nothing changed, it does nothing; `setup.sh caffe` looks anew, for another card, cuDNN or NCCL than last time.
# `setup.sh browser` installs the browser of the tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
stamp=$venv/share/bonecaffe/setup.done
note=$venv/share/bonecaffe/caffe.json
python=/usr/bin/python3 # the distribution's: Boost.Python is built for that one
run_time=(python3 python3-venv)
build_time=(python3-dev g++ make cmake pkg-config dpkg-dev ca-certificates
  libboost-python-dev libboost-filesystem-dev libboost-thread-dev libboost-system-dev libopencv-dev libprotobuf-dev protobuf-compiler
  libgoogle-glog-dev libgflags-dev libhdf5-dev liblmdb-dev libopenblas-dev)

browser=(chromium chromium-driver) # Debian's; the tests of web pages are skipped without it

say() { printf 'setup: %s\n' "$*"; }

# Whether Caffe is built for a GPU: as last asked for with `make caffe GPU=…`, else by what the machine has.
export BONECAFFE_GPU=${BONECAFFE_GPU:-$(cat "$venv/share/bonecaffe/gpu" 2>/dev/null || echo auto)}
# Whether its CPU part computes on all cores (1) or with Caffe's own loops (0): as last asked for with `make caffe FAST=…`, else 1.
export BONECAFFE_FAST=${BONECAFFE_FAST:-$(cat "$venv/share/bonecaffe/fast" 2>/dev/null || echo 1)}

state() { # all that a finished setup depends on
  sha256sum pyproject.toml requirements.txt scripts/setup.sh scripts/build_caffe.sh scripts/caffe_edits.py scripts/caffe_parallel.{py,hpp} scripts/caffe_cuda.h
  echo "gpu=$BONECAFFE_GPU fast=$BONECAFFE_FAST arch=${CUDA_ARCH:-} cuda=${CUDA_HOME:-${CUDA_PATH:-}} cudnn=${CUDNN:-}${CUDNN_ROOT:-} nccl=${NCCL:-}${NCCL_ROOT:-${NCCL_DIR:-}}"
  [ "$BONECAFFE_GPU" = 0 ] || echo "nvcc=$(command -v nvcc || true) driver=$(head -n 1 /proc/driver/nvidia/version 2>/dev/null || true)"
  echo "root=${CAFFE_ROOT:-} source=${CAFFE_SOURCE:-} cache=${BONECAFFE_CACHE:-} here=$PWD"
}
serves() { [ -f "$note" ] && root=$(sed -n 's/.*"root": "\([^"]*\)".*/\1/p' "$note") && { [ "$root" = PATH ] || [ -x "$root/bin/caffe" ] || [ -x "$root/build/tools/caffe" ]; }; }
if [ -z "${1:-}" ] && [ -f "$stamp" ] && [ "$(state)" = "$(cat "$stamp")" ] && serves; then exit 0; fi

packages() { # installs what is not there; says how when it may not
  local -a missing=()
  local package
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  command -v apt-get >/dev/null || { say "these packages are missing, and this is no Debian: ${missing[*]}"; exit 1; }
  local -a as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
      as_root=(sudo)
    else
      say "packages are missing, and this user may not install them. Have them installed, and run this again:"
      say "  apt-get install --no-install-recommends ${missing[*]}"
      exit 1
    fi
  fi
  say "installing ${#missing[@]} Debian packages: ${missing[*]}"
  local log
  log=$(mktemp)
  if ! { "${as_root[@]}" apt-get update && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } > "$log" 2>&1; then
    tail -n 15 "$log"
    say "apt-get failed; the whole log: $log"
    exit 1
  fi
  rm -f "$log"
}

if [ "${1:-}" = browser ]; then
  (packages "${browser[@]}") || say "going on without a browser; the tests of web pages will be skipped"
  exit 0
fi

began=$SECONDS
on_path() { # programs on PATH with a pycaffe on PYTHONPATH: nothing is to be built then
  command -v caffe >/dev/null && command -v convert_imageset >/dev/null && command -v compute_image_mean >/dev/null &&
    case ":${PYTHONPATH:-}:" in *caffe*) true ;; *) false ;; esac
}
if [ -n "${CAFFE_ROOT:-}" ] || on_path; then packages "${run_time[@]}"; else packages "${run_time[@]}" "${build_time[@]}"; fi

if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1 || [ "$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" != "$($python -c 'import sys; print("%d.%d" % sys.version_info[:2])')" ]; then
  say "making $venv on $($python --version)"
  rm -rf "$venv"
  $python -m venv "$venv"
fi
say "installing bonecaffe and its pinned dependencies"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement requirements.txt --editable '.[test,lint]' --constraint requirements.txt

mkdir -p "$venv/share/bonecaffe"
rm -f "$venv"/lib/python*/site-packages/bonecaffe-pycaffe.pth # or the last one's pycaffe would pass for one on PATH
found=$(scripts/build_caffe.sh "$PWD/$venv/bin/python")
root=$(sed -n 's/^root=//p' <<< "$found")
origin=$(sed -n 's/^origin=//p' <<< "$found")
printf '{"root": "%s", "origin": "%s"}\n' "$root" "$origin" > "$note"
echo "$BONECAFFE_GPU" > "$venv/share/bonecaffe/gpu"
echo "$BONECAFFE_FAST" > "$venv/share/bonecaffe/fast"
say "Caffe: $origin ($root)"
# so that `import caffe` works in .venv too
"$venv/bin/python" - <<'PY'
import sysconfig
from pathlib import Path
from bonecaffe.caffe import installation
caffe = installation.find()
pth = Path(sysconfig.get_path("purelib")) / "bonecaffe-pycaffe.pth"
pth.write_text(f"{caffe.python}\n") if caffe.python else pth.unlink(missing_ok=True)
PY
"$venv/bin/bonecaffe" doctor > "$venv/share/bonecaffe/doctor.txt" || { cat "$venv/share/bonecaffe/doctor.txt"; exit 1; }
state > "$stamp"
say "ready after $((SECONDS - began)) s; see $venv/bin/bonecaffe doctor"
