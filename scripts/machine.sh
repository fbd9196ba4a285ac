# Which system this is, and the packages that it offers. Sourced by setup.sh; `root` is empty, except in tests.
root=${BONECAFFE_PRETENDED_ROOT:-}
fewest="Python 3.11" # what requirements.txt's packages need
ways_without_packages="Give an installed Caffe with CAFFE_ROOT (an unpacked caffe-bundle needs no installation), or use
the container: docs/guide/containers.md. Without Caffe, \`bonecaffe predict --engine onnx\` still computes with a
trained model."

say() { printf 'setup: %s\n' "$*"; }
stop() { say "$*"; exit 1; }

system() { # FIELD: of os-release, such as PRETTY_NAME
  local file
  for file in "$root/etc/os-release" "$root/usr/lib/os-release"; do
    [ -r "$file" ] || continue
    (unset "$1"; . "$file"; printf '%s' "${!1:-}")
    return
  done
}
name_of_system() { local name; name=$(system PRETTY_NAME); printf '%s' "${name:-$(uname -s)}"; }
is_debian() { # Debian, Ubuntu, or made from one of them: their package names are the same
  case " $(system ID) $(system ID_LIKE) " in *" debian "* | *" ubuntu "*) command -v apt-get >/dev/null ;; *) false ;; esac
}

refuse_old_ubuntu() { # its Python is known to be too old before anything is installed
  [ "$(system ID)" = ubuntu ] || return 0
  local year
  year=$(system VERSION_ID) year=${year%%.*}
  [ "${year:-24}" -ge 24 ] ||
    stop "$(name_of_system) is too old: its Python is older than $fewest. Use the container (docs/guide/containers.md)."
}

version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
is_new_enough() { # PYTHON
  local version
  version=$(version "$1") || return 1
  [ "${version%%.*}" -gt 3 ] || { [ "${version%%.*}" = 3 ] && [ "${version#*.}" -ge 11 ]; }
}

# Prints the Python for .venv. A Caffe that is built here needs the distribution's (`choose_python build`), because
# Boost.Python is built for that one; a Caffe in CAFFE_ROOT the one that its pycaffe was built for.
choose_python() {
  local built='' record candidate others=(python3 python3.{14,13,12,11})
  [ "${1:-}" != build ] || others=()
  for record in "${CAFFE_ROOT:-}"/bonecaffe-build.json "${CAFFE_ROOT:-}"/bundle.json; do
    [ -n "${CAFFE_ROOT:-}" ] && [ -r "$record" ] || continue
    built=$(sed -n 's/.*"python": *"\([0-9][0-9.]*\)".*/\1/p' "$record" | head -n 1)
    [ -z "$built" ] || break
  done
  for candidate in "${PYTHON:-}" ${built:+"python$built"} "$root/usr/bin/python3" ${others[@]+"${others[@]}"}; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null || continue
    is_new_enough "$candidate" || continue
    [ -z "$built" ] || [ "$(version "$candidate")" = "$built" ] || continue
    command -v "$candidate"
    return 0
  done
  if [ -n "$built" ]; then
    say "the Caffe in CAFFE_ROOT=$CAFFE_ROOT is built for Python $built, and there is no python$built on PATH. Install it," \
      "or name it with PYTHON=." >&2
  else
    say "$(name_of_system): no $fewest or newer (/usr/bin/python3 is $(version "$root/usr/bin/python3" || echo missing))." \
      "Install one and name it with PYTHON=, or use the container (docs/guide/containers.md)." >&2
  fi
  return 1
}

# opencv-python needs X's libraries for its windows, which bonecaffe does not open. A bare system lacks them.
provide_opencv() { # PYTHON of .venv
  "$1" -c 'import cv2' 2>/dev/null && return 0
  local version
  version=$("$1" -c 'import importlib.metadata as installed; print(installed.version("opencv-python"))')
  say "opencv-python does not import here, so opencv-python-headless $version takes its place"
  "$1" -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps "opencv-python-headless==$version"
}

is_installed() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'ok installed'; }
is_offered() { # prints nothing for a name that others only refer to, and succeeds
  [ -n "$(apt-cache show --no-all-versions "$1" 2>/dev/null)" ]
}

as_root() { # COMMAND...: run as root; sudo asks for the password at a terminal
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}
may_install() { # as root, or by a sudo that needs no password or can ask for it
  [ "$(id -u)" = 0 ] && return 0
  command -v sudo >/dev/null || return 1
  sudo -n true 2>/dev/null && return 0
  { : > /dev/tty; } 2>/dev/null || return 1
  say "sudo asks for your password, to install Debian's packages"
  sudo -v
}

# Installs the packages that are missing. One with a question mark is installed where apt offers it (a package that a
# later release no longer has). Where this user may not install, the command is printed that does, and the status is 1;
# where a package is not offered, it is 2.
packages() {
  local each missing=() optional=() unknown=()
  for each in "$@"; do
    is_installed "${each%\?}" && continue
    case $each in *\?) optional+=("${each%\?}") ;; *) missing+=("$each") ;; esac
  done
  local offered=()
  for each in ${optional[@]+"${optional[@]}"}; do is_offered "$each" && offered+=("$each"); done
  [ ${#missing[@]} -gt 0 ] || [ ${#offered[@]} -gt 0 ] || return 0
  if ! may_install; then
    say "packages are missing, and this user may not install them. Have them installed, and run this again:"
    say "  apt-get update && apt-get install --no-install-recommends ${missing[*]-} ${offered[*]-}"
    return 1
  fi
  local log
  log=$(mktemp)
  as_root apt-get update > "$log" 2>&1 || say "apt-get update failed ($(tail -n 1 "$log")); its old lists are used"
  for each in ${missing[@]+"${missing[@]}"}; do is_offered "$each" || unknown+=("$each"); done
  [ ${#unknown[@]} -eq 0 ] || {
    say "$(name_of_system) offers no package ${unknown[*]}"
    return 2
  }
  for each in ${optional[@]+"${optional[@]}"}; do is_offered "$each" && missing+=("$each"); done
  say "installing ${#missing[@]} packages: ${missing[*]}"
  # a fresh system may be busy with its automatic upgrades
  if ! as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -o DPkg::Lock::Timeout=300 --no-install-recommends "${missing[@]}" > "$log" 2>&1 < /dev/null; then
    tail -n 15 "$log"
    say "apt-get failed; the whole log: $log"
    return 1
  fi
  rm -f "$log"
}
