#!/usr/bin/env bash
# Compiles and links Caffe for NVIDIA GPUs and checks the result. The machine does not need a GPU.
#
#   check_gpu_build.sh [ARCHITECTURE...]   compute capabilities, such as 86 89; by default the oldest that nvcc knows
#
# nvcc must be installed (CUDA 12 or 13). Missing parts (cuBLAS, cuRAND, cuDNN, NCCL) come from wheels on PyPI. Then the
# syntax of the C++ part is checked against the headers of CUDA 12 and 11.8 with cuDNN 9 and 8. Nothing runs on a GPU.
# CUDNN=0 and NCCL=0 check a build without these libraries, and leave out the older CUDAs.
# Takes 15 minutes on two cores and 3 GB in the cache. Not part of `make test`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$PWD/.venv/bin/python
cache=${BONECAFFE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bonecaffe}
work=$cache/gpu-check
say() { printf 'gpu-build: %s\n' "$*"; }
die() { say "$*" >&2; exit 1; }
[ -x "$python" ] || die "no .venv; run make setup first."
command -v nvcc >/dev/null || die "no nvcc on PATH."
top=$(nvcc --dryrun -x cu -c /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p' | head -n 1)
top=$(cd "$top" && pwd)
major=$("$top/bin/nvcc" --version | sed -n 's/.*release \([0-9]*\)\..*/\1/p')
architectures=${*:-$("$top/bin/nvcc" --list-gpu-arch | sed -n 's/^compute_\([0-9]*\)$/\1/p' | sort -n | head -n 1)}

wheels() { # FOLDER PACKAGE...: their headers and libraries, unpacked; kept for the next time
  local folder=$1; shift
  [ -f "$folder/.done" ] && return 0
  rm -rf "$folder"
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder" "$@" || return 1
  touch "$folder/.done"
}

# ---- a whole toolkit out of nvcc's folder and the wheels -----------------------------------------------------------
case $major in
  12) libraries=(nvidia-cublas-cu12 nvidia-curand-cu12 nvidia-cudnn-cu12 nvidia-nccl-cu12)
    objdump=nvidia-cuda-cuobjdump-cu12 ;;
  13) libraries=(nvidia-cublas nvidia-curand nvidia-cudnn-cu13 nvidia-nccl-cu13) objdump=nvidia-cuda-cuobjdump ;;
  *) die "nvcc of CUDA $major; 12 or 13 is needed here." ;;
esac
wheels "$work/$major" "${libraries[@]}" || die "the wheels ${libraries[*]} could not be downloaded."
toolkit=$work/toolkit-$major
rm -rf "$toolkit"
mkdir -p "$toolkit/include" "$toolkit/lib64"
for part in "$top"/*; do case ${part##*/} in include | lib64 | lib) ;; *) ln -s "$part" "$toolkit/" ;; esac; done
for folder in "$top/include" "$work/$major"/nvidia/*/include; do ln -sf "$folder"/* "$toolkit/include/"; done
for folder in "$top/lib64" "$work/$major"/nvidia/*/lib; do
  for file in "$folder"/*; do
    ln -sf "$file" "$toolkit/lib64/"
    plain=${file##*/} plain=${plain%%.so*}.so
    case $file in *.so.*) [ -e "$toolkit/lib64/$plain" ] || ln -s "$file" "$toolkit/lib64/$plain" ;; esac
  done
done

cuobjdump=$top/bin/cuobjdump
if [ ! -x "$cuobjdump" ]; then
  wheels "$work/cuobjdump-$major" "$objdump" ||
    die "no cuobjdump next to nvcc, and the wheel $objdump could not be downloaded."
  cuobjdump=$(find "$work/cuobjdump-$major" -name cuobjdump -type f | head -n 1)
  chmod +x "$cuobjdump"
fi

export CUDA_HOME=$toolkit CUDNN_ROOT=$toolkit NCCL_ROOT=$toolkit
built=$(env -u CAFFE_ROOT BONECAFFE_GPU=1 CUDA_ARCH="$architectures" "$python" scripts/build_caffe.py)
root=${built#root=} root=${root%%$'\n'*} # its first line is root=FOLDER
library=$(compgen -G "$root/lib*/libcaffe.so" | head -n 1)
export LD_LIBRARY_PATH=$toolkit/lib64

# ---- what came out -------------------------------------------------------------------------------------------------
failed=0
check() { # WHAT COMMAND...
  local what=$1; shift
  if "$@" >/dev/null 2>&1; then say "ok      $what"; else say "MISSING $what"; failed=1; fi
}
kernels() { "$cuobjdump" --list-elf "$library" | grep -c "sm_$1"; }
for one in $architectures; do
  check "kernels for sm_$one ($(kernels "$one" || true) objects)" kernels "$one"
done
check "PTX for newer GPUs" bash -c "'$cuobjdump' --list-ptx '$library' | grep -q sm_"
defines() { nm -DC --defined-only "$library" | grep "$1" > /dev/null; } # not grep -q, which would end nm before its end
not() { ! "$@"; }
linked() { ldd "$library" | grep "$1.*=> /" > /dev/null; }
needed=(libcublas libcurand) absent=()
if [ "${CUDNN:-1}" != 0 ]; then
  needed+=(libcudnn)
  for layer in Convolution Deconvolution Pooling LRN ReLU Sigmoid Softmax TanH; do
    check "CuDNN${layer}Layer" defines "caffe::CuDNN${layer}Layer<float>::Forward_gpu"
  done
else
  absent+=(libcudnn)
  check "ConvolutionLayer on the GPU without cuDNN" defines 'caffe::ConvolutionLayer<float>::Forward_gpu'
  check "no layer of cuDNN" not defines 'caffe::CuDNN'
fi
if [ "${NCCL:-1}" != 0 ]; then
  needed+=(libnccl)
  check "several GPUs (NCCL)" defines 'caffe::NCCL<float>'
else
  absent+=(libnccl)
fi
for name in "${needed[@]}"; do check "linked with $name" linked "$name"; done
for name in ${absent[@]+"${absent[@]}"}; do check "not linked with $name" not linked "$name"; done
if [ ! -e /proc/driver/nvidia/version ]; then
  words=$("$root/bin/caffe" device_query -gpu 0 2>&1) && code=0 || code=$?
  # glog ends a fatal error with SIGABRT (134); a crash would be SIGSEGV (139)
  if [ "$code" != 0 ] && [ "$code" != 139 ] && grep -qiE 'driver|no CUDA-capable device|stub' <<< "$words"; then
    say "ok      it reports a missing driver: $(grep 'Check failed' <<< "$words" | head -n 1 | sed 's/.*\] //')"
  else
    say "MISSING report of a missing driver (exit $code): $(tail -n 2 <<< "$words")"; failed=1
  fi
fi

if [ "${CUDNN:-1}" = 0 ] || [ "${NCCL:-1}" = 0 ]; then
  [ "$failed" = 0 ] && say "complete: $root" || die "something is missing; see above."
  exit
fi

# ---- the C++ part against older CUDA and cuDNN -----------------------------------------------------------------------
tree=$(ls -d "$root.tree")
syntax() { # WHAT FOLDER PACKAGE...
  local what=$1 folder=$work/$2 file bad=0 count=0 flags=(); shift 2
  if ! wheels "$folder" "$@"; then say "SKIPPED $what: $* could not be downloaded"; return; fi
  for include in "$folder"/nvidia/*/include; do flags+=(-isystem "$include"); done
  local code=$tree/source/src/caffe
  for file in "$code"/{common,parallel,syncedmem,blob,layer_factory,internal_thread,data_transformer}.cpp \
    "$code"/util/{math_functions,cudnn}*.cpp "$code"/layers/{cudnn_*,base_data_layer}.cpp; do
    [ -f "$file" ] || continue
    grep -q thrust/ "$file" && ! compgen -G "$folder/nvidia/*/include/thrust" >/dev/null && continue
    count=$((count + 1))
    if ! g++ -std=c++17 -fsyntax-only -w -DUSE_CUDNN -DUSE_NCCL -DUSE_LMDB -DUSE_OPENCV "${flags[@]}" \
      -I"$tree/source/include" -I"$tree/build/include" -I"$tree/source/src" \
      $(pkg-config --cflags opencv4 hdf5 2>/dev/null) -I/usr/include/hdf5/serial -include scripts/caffe_cuda.h \
      "$file" 2>> "$work/syntax.log"; then
      bad=$((bad + 1))
      say "        fails: ${file##*/}"
    fi
  done
  if [ "$bad" = 0 ]; then
    say "ok      $what: $count C++ files compile"
  else
    say "MISSING $what: $bad of $count C++ files fail; see $work/syntax.log"
    failed=1
  fi
}
: > "$work/syntax.log"
cuda12=(nvidia-{cuda-runtime,cublas,curand,nccl,cuda-cccl,cuda-nvcc}-cu12)
cuda11=(nvidia-{cublas,curand,nccl}-cu11 "nvidia-cuda-runtime-cu11==11.8.*" "nvidia-cuda-nvcc-cu11==11.8.*")
syntax "CUDA 12, cuDNN 9" 12-9 "${cuda12[@]}" 'nvidia-cudnn-cu12==9.*'
syntax "CUDA 12, cuDNN 8" 12-8 "${cuda12[@]}" 'nvidia-cudnn-cu12==8.*'
syntax "CUDA 11.8, cuDNN 8" 11-8 "${cuda11[@]}" 'nvidia-cudnn-cu11==8.*'
[ "$failed" = 0 ] && say "complete: $root" || die "something is missing; see above."
