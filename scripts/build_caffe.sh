#!/usr/bin/env bash
# Finds a Caffe that serves, or builds one into a per-user cache, and says which.
#
#   build_caffe.sh PYTHON            find or build; the last lines on stdout are root=…, origin=…
#   build_caffe.sh PYTHON --check    build and run Caffe's own C++ tests against the cached build
#
# PYTHON is an interpreter of the distribution's (Boost.Python is built for that one) with numpy, or a
# virtual environment's made from it. The first of these that serves is taken:
#   1. CAFFE_ROOT     an existing install, or a source folder built in place
#   2. PATH           caffe, convert_imageset, compute_image_mean, with `import caffe` working
#   3. CAFFE_SOURCE   a folder or tarball of Caffe's source
#   4. Debian bullseye's source package, its address read from this machine's own apt sources
#   5. a git clone of BVLC/caffe
# BONECAFFE_FAST=0 builds Caffe's own loops; else its CPU part computes on all cores (caffe_parallel.hpp).
# BONECAFFE_GPU=1 builds for NVIDIA's cards, 0 for the CPU alone; without it, for a card when nvcc and a driver are there. CUDA is looked
# for in CUDA_HOME, else where nvcc is; cuDNN and NCCL in CUDNN_ROOT and NCCL_ROOT, in CUDA's folder and the system's (CUDNN=0 and
# NCCL=0 leave them out). Architectures are those of the installed cards, or CUDA_ARCH="86 89".
# Built Caffes lie in ${BONECAFFE_CACHE:-${XDG_CACHE_HOME:-~/.cache}/bonecaffe}/caffe/KEY, where KEY hashes the
# source, our edits, the flags, the compiler, the libraries and Python. A folder of that name is finished: it is
# moved into place as the last step, under a lock that a second build of the same key waits for.
set -euo pipefail

python=$(command -v "${1:?usage: build_caffe.sh PYTHON [--check]}") || { echo "caffe: no such Python: $1" >&2; exit 1; }
mode=${2:-}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${BONECAFFE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bonecaffe}/caffe
programs=(caffe convert_imageset compute_image_mean)

commit=99bd99795dcdf0b1d3086a8d67ab1782a8a08383
orig=caffe_1.0.0+git20180821.99bd997.orig.tar.gz
orig_sha256=e0eb3f06794f7402c77b7dec8e8480273ee1a1bb192e9122b621a69d4147ad0c
debian=caffe_1.0.0+git20180821.99bd997-8.debian.tar.xz
debian_sha256=07cf073227494a6b07234e40cb5df91db566616593eef9baafdc4d06ad159f21
dsc=caffe_1.0.0+git20180821.99bd997-8.dsc

say() { printf 'caffe: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
found() { printf 'root=%s\norigin=%s\n' "$1" "$2"; exit 0; }

# ---- what a Caffe must have to serve -------------------------------------------------------------------------

bin_of() { # the folder of a root's programs: an install has bin/, a source folder built in place build/tools/
  local d
  for d in "$1/bin" "$1/build/tools" "$1"; do
    [ -x "$d/caffe" ] && { echo "$d"; return 0; }
  done
  return 1
}
pycaffe_of() { # the folder to put on Python's path
  local d
  for d in "$1"/lib/python3/dist-packages "$1"/lib/python3*/dist-packages "$1"/lib/python3*/site-packages "$1"/python; do
    [ -f "$d/caffe/__init__.py" ] && { echo "$d"; return 0; }
  done
  return 1
}
lacks() { # prints what a root lacks; nothing when it serves
  local root=$1 bin lib p
  bin=$(bin_of "$root") || { echo "no bin/caffe or build/tools/caffe"; return; }
  for p in "${programs[@]}"; do [ -x "$bin/$p" ] || { echo "no $bin/$p"; return; }; done
  lib=$(pycaffe_of "$root") || { echo "no pycaffe (python/caffe)"; return; }
  local said
  said=$(PYTHONPATH=$lib GLOG_minloglevel=2 "$python" -c 'import caffe' 2>&1) || echo "pycaffe in $lib does not import into $python: $(tail -n 1 <<< "$said")"
}

if [ "$mode" != --check ]; then
  if [ -n "${CAFFE_ROOT:-}" ]; then
    why=$(lacks "$CAFFE_ROOT")
    [ -z "$why" ] || die "CAFFE_ROOT=$CAFFE_ROOT does not serve: $why. Mend it, or unset CAFFE_ROOT to have Caffe built."
    found "$(cd "$CAFFE_ROOT" && pwd)" "CAFFE_ROOT"
  fi
  if command -v caffe >/dev/null && command -v convert_imageset >/dev/null && command -v compute_image_mean >/dev/null; then
    if GLOG_minloglevel=2 "$python" -c 'import caffe' 2>/dev/null; then
      found "PATH" "programs on PATH"
    fi
    say "a caffe is on PATH ($(command -v caffe)), but $python cannot import its pycaffe; looking further"
  fi
fi

# ---- the source ----------------------------------------------------------------------------------------------

mkdir -p "$cache/source"
work=$(mktemp -d "$cache/.work-XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

debian_address() { # the machine's own main archive of Debian
  apt-get indextargets --format '$(REPO_URI) $(COMPONENT)' 'Created-By: Packages' 2>/dev/null |
    awk '$2 == "main" && $1 !~ /security/ { print $1 }' | awk '!seen[$0]++'
}
sha_is() { [ -f "$1" ] && echo "$2  $1" | sha256sum --check --status; }

from_debian() { # fetches the source package into $cache/source; apt's own signatures, then our pinned sums
  sha_is "$cache/source/$orig" $orig_sha256 && sha_is "$cache/source/$debian" $debian_sha256 && [ -f "$cache/source/$dsc" ] && return 0
  command -v apt-get >/dev/null || return 1
  local address keyring
  mkdir -p "$work/apt/lists/partial" "$work/apt/archives/partial" "$work/fetch"
  keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  for address in $(debian_address); do
    echo "deb-src ${keyring:+[signed-by=$keyring]} $address bullseye main" > "$work/apt/sources.list"
    local -a isolated=(-o "Dir::Etc::sourcelist=$work/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
      -o "Dir::State::lists=$work/apt/lists" -o "Dir::Cache=$work/apt" -o APT::Sandbox::User= -o Acquire::Retries=2)
    if apt-get "${isolated[@]}" update >> "$work/fetch.log" 2>&1 &&
       (cd "$work/fetch" && apt-get "${isolated[@]}" source --download-only "caffe=1.0.0+git20180821.99bd997-8") >> "$work/fetch.log" 2>&1 &&
       sha_is "$work/fetch/$orig" $orig_sha256 && sha_is "$work/fetch/$debian" $debian_sha256; then
      mv -f "$work/fetch/"* "$cache/source/"
      return 0
    fi
  done
  say "Debian bullseye's source package of Caffe could not be had:"
  tail -n 4 "$work/fetch.log" >&2 || true
  return 1
}

source_hash= origin=
if [ -n "${CAFFE_SOURCE:-}" ]; then
  if [ -d "$CAFFE_SOURCE" ]; then
    [ -f "$CAFFE_SOURCE/src/caffe/proto/caffe.proto" ] || die "CAFFE_SOURCE=$CAFFE_SOURCE holds no src/caffe/proto/caffe.proto: not Caffe's source."
    source_hash=$(cd "$CAFFE_SOURCE" && find CMakeLists.txt cmake include src python tools -type f ! -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -c1-64)
  elif [ -f "$CAFFE_SOURCE" ]; then
    source_hash=$(sha256sum "$CAFFE_SOURCE" | cut -c1-64)
  else
    die "CAFFE_SOURCE=$CAFFE_SOURCE: no such folder or tarball."
  fi
  origin="CAFFE_SOURCE"
elif from_debian; then
  source_hash=$orig_sha256+$debian_sha256
  origin="Debian bullseye's source package, upstream ${commit:0:9}"
else
  command -v git >/dev/null || die "no source: Debian's package could not be had, and git is missing for a clone. Give CAFFE_SOURCE."
  say "trying a git clone of BVLC/caffe"
  git clone --quiet https://github.com/BVLC/caffe.git "$work/clone" >&2 && git -C "$work/clone" checkout --quiet "$commit" ||
    die "no source of Caffe could be had. Give one with CAFFE_SOURCE=folder-or-tarball, or an install with CAFFE_ROOT."
  source_hash=$commit
  origin="git clone of BVLC/caffe, ${commit:0:9}"
fi

# ---- flags and key -------------------------------------------------------------------------------------------

about_python=$("$python" - <<'PY'
import os, sys, sysconfig
import numpy
v = sysconfig.get_config_vars()
libraries = (os.path.join(v["LIBDIR"], v["LDLIBRARY"]), os.path.join(v["LIBDIR"], v.get("MULTIARCH", ""), v["LDLIBRARY"]))
print("%d.%d" % sys.version_info[:2], sysconfig.get_path("include"), next((p for p in libraries if os.path.exists(p)), "missing-libpython"),
      numpy.get_include(), numpy.__version__.split(".")[0], sep="\n")
PY
) || die "$python cannot import numpy; run scripts/setup.sh, which makes the environment first."
{ read -r py_version; read -r py_include; read -r py_library; read -r numpy_include; read -r numpy_major; } <<< "$about_python" # a line each: paths hold spaces
[ -f "$py_include/Python.h" ] || die "no $py_include/Python.h. Install it: apt-get install python3-dev"

wants_gpu() { # by wish, or because a card's driver and a compiler for it are there
  case ${BONECAFFE_GPU:-auto} in
    0) return 1 ;;
    1) return 0 ;;
    auto) command -v nvcc >/dev/null && [ -e /proc/driver/nvidia/version ] ;;
    *) die "BONECAFFE_GPU=$BONECAFFE_GPU: 1 builds for a GPU, 0 for the CPU." ;;
  esac
}
first_dir_with() { # a file's pattern, then folders: the first that holds it
  local pattern=$1 d; shift
  for d in "$@"; do compgen -G "$d/$pattern" >/dev/null && { echo "$d"; return 0; }; done
  return 1
}

host_compiler() { # the first C++ compiler that nvcc takes, of the newest that are here; an old CUDA refuses a new g++
  local candidate
  echo 'int main() {}' > "$work/host.cu"
  for candidate in "${CUDAHOSTCXX:-}" g++ g++-{14,13,12,11,10}; do
    candidate=$(command -v "$candidate") || continue
    "$nvcc" -ccbin "$candidate" -std=c++17 -Wno-deprecated-gpu-targets -c "$work/host.cu" -o "$work/host.o" > "$work/nvcc.log" 2>&1 && { echo "$candidate"; return 0; }
  done
  return 1
}

fast=(-DUSE_OPENMP=OFF) cxx_flags=
case ${BONECAFFE_FAST:-1} in
  1) fast=(-DUSE_OPENMP=ON) cxx_flags="-fno-math-errno -fno-trapping-math" ;; # nobody asks for either; loops with sqrt and max are vectorized without
  0) ;;
  *) die "BONECAFFE_FAST=$BONECAFFE_FAST: 1 computes on all cores of a CPU (caffe_parallel.hpp), 0 with Caffe's own loops." ;;
esac

gpu=(-DCPU_ONLY=ON) gpu_paths=() about_gpu=
if wants_gpu; then
  cuda=${CUDA_HOME:-${CUDA_PATH:-}}
  if [ -z "$cuda" ]; then
    command -v nvcc >/dev/null || die "a build for a GPU is wanted, but no nvcc on PATH. Install NVIDIA's CUDA toolkit (11.8, 12 or 13), or set CUDA_HOME."
    cuda=$(nvcc --dryrun -x cu -c /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p' | head -n 1)
    cuda=$(cd "${cuda:-$(dirname "$(readlink -f "$(command -v nvcc)")")/..}" && pwd)
  fi
  nvcc=$cuda/bin/nvcc
  [ -x "$nvcc" ] || die "$cuda: no bin/nvcc there. Set CUDA_HOME to the toolkit's folder."
  cuda_version=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
  [ "${cuda_version%%.*}" -ge 11 ] || die "CUDA $cuda_version: 11.8, 12 or 13 is needed, because Debian's protobuf asks for C++17."
  known=$("$nvcc" --list-gpu-arch | sed -n 's/^compute_\([0-9]*\)$/\1/p' | sort -n)
  oldest=$(head -n 1 <<< "$known") newest=$(tail -n 1 <<< "$known")
  cards=${CUDA_ARCH:-$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | grep -E '^[0-9]+\.[0-9]+$' | sort -u || true)} # it says "No devices were found" there too
  cards=$(tr -d . <<< "$cards" | tr ', ' '\n' | sed '/^$/d' | sort -n -u)
  real= virtual=
  for card in $cards; do
    [[ $card =~ ^[0-9]+$ ]] || die "CUDA_ARCH: '$card' is no compute capability, such as 86 or 8.6."
    if [ "$card" -lt "$oldest" ]; then
      die "compute capability $card: CUDA $cuda_version knows $oldest and newer. For a card this old (a GTX 1060 is 61), install CUDA 12 or 11.8."
    elif ! grep -qx "$card" <<< "$known"; then
      virtual=$(awk -v card="$card" '$1 <= card' <<< "$known" | tail -n 1)
      say "compute capability $card is not known to CUDA $cuda_version: built as $virtual, which the driver compiles for the card at its first start"
    else
      real="$real $card"
      virtual=$card
    fi
  done
  if [ -z "$cards" ]; then # every newer card's driver compiles this for itself
    real=$oldest virtual=$oldest
    say "no card seen and no CUDA_ARCH given: built for compute capability $oldest; newer cards compile it for themselves at the first start"
  fi
  [ -n "$real" ] || real=$virtual
  gpu=(-DCPU_ONLY=OFF -DCUDA_ARCH_NAME=Manual "-DCUDA_ARCH_BIN=${real# }" "-DCUDA_ARCH_PTX=$virtual" -DCUDA_PROPAGATE_HOST_FLAGS=OFF
    -DCMAKE_POLICY_DEFAULT_CMP0146=OLD)
  about_gpu="CUDA $cuda_version"
  host=$(host_compiler) || die "CUDA $cuda_version takes none of the C++ compilers here: $(tail -n 1 "$work/nvcc.log"). Install an older one (CUDA 11.8 wants g++-11 or older), or name one: CUDAHOSTCXX=g++-11"
  gpu_paths=("-DCUDA_TOOLKIT_ROOT_DIR=$cuda" "-DCUDA_HOST_COMPILER=$host" -DCMAKE_INSTALL_RPATH_USE_LINK_PATH=ON)
  cxx_flags="$cxx_flags $([ -d "$cuda/include/cccl" ] && echo "-isystem $cuda/include/cccl")"
  multiarch=$(gcc -print-multiarch 2>/dev/null || true)
  optional() { # NAME HEADER LIBRARY ROOT: adds the library when its header and itself are found
    local name=$1 header=$2 library=$3 root=$4 include lib
    include=$(first_dir_with "$header" ${root:+"$root/include" "$root"} "$cuda/include" /usr/include "/usr/include/$multiarch" /usr/local/include) &&
      lib=$(first_dir_with "lib$library.so*" ${root:+"$root/lib" "$root/lib64"} "$cuda/lib64" "$cuda/lib" "/usr/lib/$multiarch" /usr/lib /usr/local/lib) || return 1
    lib=$(compgen -G "$lib/lib$library.so*" | sort | head -n 1)
    gpu+=("-DUSE_$name=ON")
    case $name in
      CUDNN) gpu_paths+=("-DCUDNN_INCLUDE=$include" "-DCUDNN_LIBRARY=$lib")
             about_gpu="$about_gpu, cuDNN $(cat "$include"/cudnn_version*.h 2>/dev/null | sed -n 's/^#define CUDNN_MAJOR *//p' | head -n 1)" ;;
      NCCL)  gpu_paths+=("-DNCCL_INCLUDE_DIR=$include" "-DNCCL_LIBRARIES=$lib"); about_gpu="$about_gpu, NCCL" ;;
    esac
  }
  { [ "${CUDNN:-1}" != 0 ] && optional CUDNN cudnn.h cudnn "${CUDNN_ROOT:-}"; } || { gpu+=(-DUSE_CUDNN=OFF); about_gpu="$about_gpu, no cuDNN"; }
  { [ "${NCCL:-1}" != 0 ] && optional NCCL nccl.h nccl "${NCCL_ROOT:-${NCCL_DIR:-}}"; } || { gpu+=(-DUSE_NCCL=OFF); about_gpu="$about_gpu, no NCCL: one card at a time"; }
  about_gpu="$about_gpu; compute capability ${real# }"
  say "for a GPU: $about_gpu"
fi

flags=(-DCMAKE_BUILD_TYPE=Release "${gpu[@]}" "${fast[@]}" -DUSE_LEVELDB=OFF -DBUILD_docs=OFF -DBUILD_python=ON -DBUILD_python_layer=ON
  -DBLAS=Open "-Dpython_version=$py_version" -DCMAKE_POLICY_VERSION_MINIMUM=3.5)
libraries=$(dpkg-query -W -f '${Package} ${Version}\n' libboost-python-dev libopencv-dev libprotobuf-dev libgoogle-glog-dev libgflags-dev \
  libhdf5-dev liblmdb-dev libopenblas-dev 2>/dev/null || pkg-config --modversion opencv4 protobuf 2>/dev/null || true)
edits=$(cat "$here"/caffe_{edits,parallel}.py "$here/caffe_parallel.hpp" | sha256sum | cut -d' ' -f1)
key=$(printf '%s\n' "$source_hash" "$edits" "${flags[*]}" "$(g++ -dumpfullversion)" "$(uname -m)" \
  "$py_version numpy$numpy_major" "$libraries" ${about_gpu:+"$about_gpu" "${gpu_paths[*]}" "$(sha256sum < "$here/caffe_cuda.h")"} | sha256sum | cut -c1-16)
prefix=$cache/$key
tree=$cache/$key.tree

exec 9> "$cache/$key.lock"
flock --nonblock 9 || { say "another build of $key is under way; waiting for it"; flock 9; }

progress() { # make's output -> one line when another tenth is done; everything goes to the log
  local line last=-1 # in the shell, because mawk would wait for a full buffer
  while IFS= read -r line; do
    printf '%s\n' "$line" >> "$1"
    if [[ $line =~ ^\[\ *([0-9]+)%\] ]] && [ $((BASH_REMATCH[1] / 10)) -gt "$last" ]; then
      last=$((BASH_REMATCH[1] / 10))
      printf 'caffe: %d0 %%\n' "$last" >&2
    fi
  done
}
shown() { # runs a step with its output in a log; on failure shows the end of it
  local log=$1; shift
  if ! "$@" 2>&1 | progress "$log"; then
    say "failed: $*"; tail -n 30 "$log" >&2; die "the whole log: $log"
  fi
}

unpack() { # a tarball into a folder, whether or not it holds everything in one folder of its own
  tar -xf "$1" -C "$2" || die "CAFFE_SOURCE=$1: not a readable tarball."
  local -a inside=("$2"/*/)
  if [ ! -f "$2/CMakeLists.txt" ] && [ ${#inside[@]} -eq 1 ]; then mv "$2" "$2.outer" && mv "$2.outer"/*/ "$2" && rm -rf "$2.outer"; fi
  [ -f "$2/src/caffe/proto/caffe.proto" ] || die "CAFFE_SOURCE=$1: holds no src/caffe/proto/caffe.proto: not Caffe's source."
}

build() {
  say "building from $origin (about 4 minutes on two cores${about_gpu:+, 10 with a GPU}; log: $tree/build.log)"
  rm -rf "$tree"
  mkdir -p "$tree"
  case $origin in
    Debian*) dpkg-source --no-check -x "$cache/source/$dsc" "$tree/source" > "$tree/build.log" 2>&1 || die "dpkg-source failed; see $tree/build.log" ;;
    git*)    mv "$work/clone" "$tree/source" ;;
    *)       mkdir "$tree/source"
             if [ -d "$CAFFE_SOURCE" ]; then cp -a "$CAFFE_SOURCE"/{CMakeLists.txt,cmake,include,src,python,tools,examples,scripts,models,data,matlab,docs} "$tree/source/" 2>/dev/null || true
             else unpack "$CAFFE_SOURCE" "$tree/source"; fi ;;
  esac
  "$python" "$here/caffe_edits.py" "$tree/source" >&2
  mkdir "$tree/build"
  local compatible=$tree/source/include/caffe/util/cuda_compatibility.h
  [ -z "$about_gpu" ] || gpu_paths+=("-DCUDA_NVCC_FLAGS=-std=c++17;-O3;-Wno-deprecated-gpu-targets;-include;$compatible")
  shown "$tree/build.log" cmake -S "$tree/source" -B "$tree/build" "${flags[@]}" ${gpu_paths[@]+"${gpu_paths[@]}"} "-DCMAKE_CXX_FLAGS=$cxx_flags ${about_gpu:+-include $compatible}" "-DCMAKE_INSTALL_PREFIX=$prefix" "-DCMAKE_INSTALL_RPATH=$prefix/lib" \
    "-DPYTHON_EXECUTABLE=$python" "-DPYTHON_INCLUDE_DIR=$py_include" "-DPYTHON_LIBRARY=$py_library" "-DNUMPY_INCLUDE_DIR=$numpy_include"
  shown "$tree/build.log" make -C "$tree/build" -j"$(nproc)" all
  shown "$tree/build.log" env DESTDIR="$tree/staging" cmake -P "$tree/build/cmake_install.cmake"
}

finish() { # the staged install becomes the finished one, in one rename
  printf '{"source": "%s", "source_sha256": "%s", "commit": "%s", "edits_sha256": "%s", "flags": "%s", "compiler": "g++ %s", "python": "%s", "blas": "%s", "gpu": "%s", "built": "%s"}\n' \
    "$origin" "$source_hash" "$commit" "$edits" "${flags[*]}" "$(g++ -dumpfullversion)" "$py_version" \
    "OpenBLAS $(dpkg-query -W -f '${Version}' libopenblas-dev 2>/dev/null)" "${about_gpu:-none}" "$(date -u +%FT%TZ)" > "$tree/staging$prefix/bonecaffe-build.json"
  mv -T "$tree/staging$prefix" "$prefix"
  rm -rf "$tree/staging"
}

if [ ! -d "$prefix" ]; then
  build
  finish
  why=$(lacks "$prefix")
  if [ -n "$why" ]; then
    mv "$prefix" "$tree/refused"
    die "the build does not serve: $why (kept in $tree/refused)"
  fi
  say "built into $prefix"
fi

if [ "$mode" = --check ]; then
  [ -d "$tree/build" ] || { build; rm -rf "$tree/staging"; } # the finished install stays as it is meanwhile
  say "building Caffe's own C++ tests (about 3 minutes on two cores the first time)"
  shown "$tree/check.log" make -C "$tree/build" -j"$(nproc)" test.testbin
  cd "$tree/source" # its test data are named from there
  exec "$tree/build/test/test.testbin" --gtest_filter='-*GPU*' --gtest_shuffle=0 --gtest_color=no
fi
found "$prefix" "$origin"
