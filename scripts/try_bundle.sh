#!/usr/bin/env bash
# Tries an archive of `make caffe-bundle` on a bare Debian: no compiler, no library of Caffe's, an ordinary user.
#   scripts/try_bundle.sh ARCHIVE [SUITE | FOLDER] [TARGET …]      as root, with debootstrap; TARGET is make's (smoke)
# FOLDER is a bare system that debootstrap made (it is copied). SUITE (bookworm) is made here; the mirror's address is
# the one of this machine's apt. Python packages come as on this machine: its pip settings are copied.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

archive=${1:?which archive? make one with: make caffe-bundle}
base=${2:-bookworm}
shift $(($# < 2 ? $# : 2))
targets=("${@:-smoke}")
[ -f "$archive" ] || { echo "try_bundle: $archive is not there" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "try_bundle: root is needed, for debootstrap and chroot" >&2; exit 1; }

work=$(mktemp -d)
system=$work/system
mounted=()
cleanup() {
  local folder
  for folder in "${mounted[@]}"; do
    umount -l "$folder" || { echo "try_bundle: $folder cannot be unmounted; $work is left as it is" >&2; return; }
  done
  rm -rf --one-file-system "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

bind() { # a folder of this machine, as it is named there; with other arguments, mount's options
  [ -d "$1" ] || return 0
  mkdir -p "$system$1"
  mount --bind "$1" "$system$1"
  mounted=("$system$1" "${mounted[@]}")
  [ $# = 1 ] || mount -o "remount,bind,$2" "$system$1"
}
inside() { # as root, in the bare system, with this machine's settings of pip and its proxies
  local -a settings=()
  mapfile -t settings < <(env | grep -E '^(PIP_[A-Z_]+|[a-z]+_proxy|[A-Z]+_PROXY)=' || true)
  chroot "$@" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 TERM=dumb HOME=/srv/user \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt "${settings[@]}" PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
    CAFFE_ROOT="/srv/user/$name" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" bash -euc "$command"
}

if [ -d "$base" ]; then
  mkdir "$system"
  tar -C "$base" --one-file-system -cf - . | tar -C "$system" -xf -
else
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' | head -n 1)
  debootstrap --variant=minbase "$base" "$system" "$mirror" > "$work/debootstrap.log" || { cat "$work/debootstrap.log"; exit 1; }
fi
bind /proc
bind /dev
cp /etc/resolv.conf /etc/hosts "$system/etc/"
grep -l -i -E 'proxy|Acquire' /etc/apt/apt.conf.d/* 2> /dev/null | xargs -r -I{} cp {} "$system/etc/apt/apt.conf.d/"
mkdir -p "$system/etc/ssl/certs" "$system/srv/user/.config/pip"
cp -L /etc/ssl/certs/ca-certificates.crt "$system/etc/ssl/certs/"
[ ! -f /etc/pip.conf ] || cp /etc/pip.conf "$system/etc/"
[ ! -f ~/.config/pip/pip.conf ] || cp ~/.config/pip/pip.conf "$system/srv/user/.config/pip/"
# folders of wheels that this machine's pip takes packages from
while read -r folder; do bind "$folder" ro; done < <(
  { python3 -m pip config list 2> /dev/null || cat /etc/pip.conf ~/.config/pip/pip.conf 2> /dev/null; env | grep ^PIP_; } |
    grep -oE '/[A-Za-z0-9_./-]+' | sed 's#^//*#/#' | cut -d / -f 1-3 | sort -u | grep -vE '^/(etc|proc|dev|home|root|$)' || true)

name=$(basename "$archive" .tar.xz)
command='apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
  python3 python3-venv make > /tmp/apt.log 2>&1 || { tail -n 20 /tmp/apt.log; exit 1; }
useradd --no-create-home --home-dir /srv/user --uid 1000 user 2> /dev/null || true'
inside "$system"
mkdir -p "$system/srv/user/bonecaffe"
git archive HEAD | tar -C "$system/srv/user/bonecaffe" -xf -
began=$SECONDS
python3 - "$archive" "$system/srv/user" <<'PYTHON'
import sys, tarfile
tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter="data")
PYTHON
echo "try_bundle: unpacked in $((SECONDS - began)) s: $(du -sm "$system/srv/user/$name" | cut -f 1) MB"
chown -R 1000:1000 "$system/srv/user"

command='cd ~/bonecaffe
for tool in gcc g++ cc nvcc cmake; do ! command -v $tool || { echo "not bare: $tool"; exit 1; }; done
! dpkg-query -W -f "\${Package}\n" | grep -E "opencv|openblas|boost|protobuf|glog|libpython3\.[0-9]+$|-dev$" || { echo "not bare"; exit 1; }
make setup
.venv/bin/python -c "import caffe; print(caffe.__file__)"'
inside --userspec=1000:1000 "$system"
echo "try_bundle: set up after $((SECONDS - began)) s"
for target in "${targets[@]}"; do
  began=$SECONDS
  command="cd ~/bonecaffe && make $target"
  inside --userspec=1000:1000 "$system"
  echo "try_bundle: make $target: $((SECONDS - began)) s"
done
