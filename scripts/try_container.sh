#!/usr/bin/env bash
# Builds the container of the Containerfile and tries it: the smoke test, a demo, a prediction, as an ordinary user.
#
#     scripts/try_container.sh [SUITE]     Debian's suite, from debootstrap as base image (default: bookworm)
#     BASE=IMAGE scripts/try_container.sh  another base image
#
# Needs root, podman, buildah (whose chroot isolation works inside another container) and debootstrap. No registry of
# images is asked without BASE. 20 minutes on two cores, 4 GB.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
suite=${1:-bookworm}
image=localhost/bonecaffe
options=(--network=host)
work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT
say() { printf 'container: %s\n' "$*"; }

if [ -z "${BASE:-}" ]; then
  BASE=localhost/debian-$suite
  if ! podman image exists "$BASE"; then
    say "making $BASE"
    # the mirror that this machine uses; a machine's own certificates and pip settings go along
    mirror=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' 'Created-By: Packages' |
      sed -n 's/^Debian //p' | grep -v security | head -n 1)
    debootstrap --variant=minbase --include=ca-certificates "$suite" "$work/base" "$mirror" > "$work/log" ||
      { tail "$work/log"; exit 1; }
    cp -L /etc/ssl/certs/ca-certificates.crt "$work/base/etc/ssl/certs/"
    printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' > "$work/base/etc/pip.conf"
    tar -C "$work/base" -c . | podman import --quiet - "$BASE" > /dev/null
  fi
fi

say "building $image on $BASE"
podman build "${options[@]}" --isolation=chroot --build-arg BASE="$BASE" -t "$image" .
podman image inspect --format 'container: size {{.Size}} bytes' "$image"

mkdir "$work/runs"
chmod a+rwx "$work/runs"
container=$(buildah from "$image")
trap 'buildah rm "$container" > /dev/null; rm -rf --one-file-system "$work"' EXIT
inside() { # USER COMMAND...
  local user=$1; shift
  buildah run --isolation chroot "${options[@]}" --user "$user" -v "$work/runs:/opt/bonecaffe/runs" "$container" -- "$@"
}
say "make smoke"
inside 1000:1000 make smoke
say "make demo, and a prediction of an image, as another user"
inside 12345:12345 make demo
inside 12345:12345 sh -c 'id; bonecaffe predict runs/demo "$(ls runs/demo-data/images/*.png | head -n 1)"; bonecaffe doctor'
say "all of it worked"
