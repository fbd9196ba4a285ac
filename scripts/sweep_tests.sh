#!/usr/bin/env bash
# Runs the tests under the conditions of other machines: with each of OpenBLAS's kernels that this CPU can execute,
# then twice while four busy processes run. In every run SIGINT and SIGHUP are ignored, as in a script's background job
# under nohup. The user is not root (root switches to the user nobody). The checkout is a copy, alone in its folder.
# Without --full, only the tests that depend on the kernel run. Exits 1 if a run failed, and keeps its log.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1:-} in
  --full) tests=() ;;
  "") tests=(tests/test_caffe_parallel.py tests/test_predict.py tests/test_repeat.py tests/training tests/locate) ;;
  *) echo "usage: scripts/sweep_tests.sh [--full]" >&2; exit 2 ;;
esac

needs() { # the flags in /proc/cpuinfo without which a core type's kernels die of an illegal instruction
  local avx512="avx512f avx512cd avx512bw avx512dq avx512vl"
  case $1 in
    Prescott) echo pni ;;
    Nehalem) echo sse4_2 ;;
    Sandybridge) echo avx ;;
    Haswell | Zen) echo avx2 fma ;;
    SkylakeX) echo "avx2 fma $avx512" ;;
    Cooperlake) echo "avx2 fma $avx512 avx512_bf16" ;;
    Sapphirerapids) echo "avx2 fma $avx512 avx512_bf16 amx_tile amx_bf16" ;;
  esac
}
flags=" $(sed -n 's/^flags[^:]*: //p' /proc/cpuinfo | head -n 1) "
executes() {
  local flag
  for flag in $(needs "$1"); do [[ $flags == *" $flag "* ]] || return 1; done
}
kernels_for() { # the kernels OpenBLAS uses for a core type; if it was built without them, it silently uses others
  OPENBLAS_CORETYPE=$1 .venv/bin/python -c 'import ctypes
blas = ctypes.CDLL("libopenblas.so.0")
blas.openblas_get_corename.restype = ctypes.c_char_p
print(blas.openblas_get_corename().decode())' 2>/dev/null
}

work=$(mktemp -d) || exit 1
copy=$work/bonecaffe
busy=()
failed=0
finish() {
  [ ${#busy[@]} -eq 0 ] || kill "${busy[@]}" 2>/dev/null
  [ $failed -ne 0 ] || rm -rf "$work"
}
trap finish EXIT

echo "sweep: copying the checkout and setting it up"
mkdir "$copy" "$work/home" "$work/tmp"
git ls-files -z --cached --others --exclude-standard |
  tar --create --null --files-from - --ignore-failed-read 2>/dev/null | tar --extract --directory "$copy"
as=(env "TMPDIR=$work/tmp")
if [ "$(id -u)" -eq 0 ]; then # copies Caffe too, because the user nobody may not read root's cache
  cache=${BONECAFFE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bonecaffe}
  export BONECAFFE_CACHE=$work/cache
  mkdir -p "$work/cache/caffe"
  find "$cache/caffe" -mindepth 1 -maxdepth 1 ! -name '*.tree' -exec cp -r -t "$work/cache/caffe" {} +
  as=(setpriv --reuid nobody --regid "$(id -g nobody)" --clear-groups env "TMPDIR=$work/tmp" "HOME=$work/home")
fi
"$copy/scripts/setup.sh" > "$work/setup.log" 2>&1 || { failed=1; tail "$work/setup.log"; exit 1; }
if [ "$(id -u)" -eq 0 ]; then
  root=$(sed -n 's/.*"root": "\([^"]*\)".*/\1/p' "$copy/.venv/share/bonecaffe/caffe.json")
  as+=("LD_LIBRARY_PATH=$root/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}") # its programs were linked for the original folder
  chown -R nobody: "$work"
fi

table=()
run() { # a name, then assignments for the environment
  local name=$1 log=$work/${1// /-}.log began=$SECONDS result=passed
  shift
  echo "sweep: $name"
  (trap '' INT HUP && cd "$copy" && exec "${as[@]}" "$@" .venv/bin/python -m pytest -q ${tests[@]+"${tests[@]}"}) \
    < /dev/null > "$log" 2>&1 ||
    { result=FAILED; failed=1; grep -E '^(FAILED|ERROR)' "$log"; echo "sweep: the complete log: $log"; }
  table+=("$(printf '%-28s %-8s %5d s  %s' "$name" $result $((SECONDS - began)) "$(tail -n 1 "$log")")")
}

for core in Prescott Nehalem Sandybridge Haswell Zen SkylakeX Cooperlake Sapphirerapids; do
  if ! executes $core; then
    table+=("$(printf '%-28s not run: this CPU lacks one of: %s' $core "$(needs $core)")")
  elif kernels=$(kernels_for $core) && [ "${kernels,,}" != "${core,,}" ]; then
    table+=("$(printf '%-28s not run: this OpenBLAS takes %s instead' $core "$kernels")")
  else
    run $core OPENBLAS_CORETYPE=$core
  fi
done
for _ in 1 2 3 4; do
  while :; do :; done &
  busy+=($!)
done
for time in first second; do run "four busy processes, $time"; done

printf '\n%s\n' "${table[@]}"
exit $failed
