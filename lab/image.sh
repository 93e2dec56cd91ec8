#!/usr/bin/env bash
# The two images that cannot be pulled everywhere: the lab's host, and the Python that the app's image starts from.
# Bootstrapped from this machine's own package mirror. LAB_HOST_IMAGE=ubuntu:24.04 builds the host on a pulled image instead.
. "$(dirname "$0")/lib.sh"

host_packages=$(tr '\n' ',' <lab/image/packages.txt | sed 's/,$//')
python_packages=python3,python3-venv,ca-certificates,tzdata

# The distribution that the images are made of, and where this machine gets its packages from.
. /etc/os-release
if [ "$ID" = ubuntu ]; then suite=$VERSION_CODENAME components=main,universe; else suite=trixie components=main; fi
mirror() {
  # shellcheck disable=SC2016 # apt-get expands it, not the shell
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Label: ${NAME%% *}" | head -n 1
}
proxy=$(apt-config shell p Acquire::http::Proxy | sed -n "s/^p='\(.*\)'$/\1/p")

bootstrap() { # TAG PACKAGES [OPTION...]
  apt_install mmdebstrap
  local uri
  uri=$(mirror)
  [ -n "$uri" ] || refuse "apt knows no $NAME mirror here: run 'apt-get update' and try again."
  as_root mmdebstrap --quiet --variant=minbase --components="$components" --include="$2" "${@:3}" "$suite" - "$uri" |
    docker import - "$1" >/dev/null
}

have() { docker image inspect "$1" >/dev/null 2>&1; }
recipe() { cat "$@" | sha256sum | cut -c1-12; }

python_image=trading-bot-lab/python:$(recipe lab/image.sh)
if have "$python_image"; then
  skip "Python base image"
else
  step "Python base image, bootstrapped from $ID's packages ($suite)" bootstrap "$python_image" "$python_packages"
fi
docker tag "$python_image" trading-bot-lab/python:current

host_image=trading-bot-lab/host:$(find lab/image -type f -print0 | sort -z | xargs -0 cat lab/image.sh | sha256sum | cut -c1-12)${LAB_HOST_IMAGE:+-${LAB_HOST_IMAGE//[:\/]/-}}
build_host() {
  local base=${LAB_HOST_IMAGE:-trading-bot-lab/debian:$suite}
  [ -n "${LAB_HOST_IMAGE:-}" ] || bootstrap "$base" "$host_packages" --skip=cleanup/apt/lists
  local context
  context=$(mktemp -d)
  cp -r lab/image/. "$context"
  [ -z "${LAB_CA_BUNDLE:-}" ] || cp "$LAB_CA_BUNDLE" "$context/rootfs/usr/local/share/lab-ca.crt"
  docker build --quiet --build-arg BASE="$base" --build-arg APT_PROXY="$proxy" --tag "$host_image" "$context" >/dev/null
  rm -rf "$context"
}
if have "$host_image"; then
  skip "Lab host image"
else
  step "Lab host image on ${LAB_HOST_IMAGE:-$ID $suite}" build_host
fi
docker tag "$host_image" trading-bot-lab/host:current
