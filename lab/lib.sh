# Shared by the lab's scripts: how a step is announced, timed, skipped and refused.
# shellcheck shell=bash
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
export PATH="$root/.venv/bin:$PATH"

say() { printf '%s %s\n' '==>' "$*"; }

# skip TEXT: the step's work is there already.
skip() { say "$* (there already)"; }

# step TEXT COMMAND...: run the command, say how long it took.
step() {
  local text=$1 start=$SECONDS
  shift
  say "$text ..."
  "$@"
  say "$text: $((SECONDS - start)) s"
}

# refuse TEXT: one sentence that says what to do.
refuse() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# as_root COMMAND...: directly for root, through sudo for anybody else.
as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    sudo -n "$@"
  else
    refuse "'$*' needs root: run make as root, or let this user use sudo without a password."
  fi
}

# need_space DIRECTORY GIB: refuse when the file system has less room than that.
need_space() {
  local free
  free=$(df --output=avail -BG "$1" | tail -n 1 | tr -dc '0-9')
  [ "$free" -ge "$2" ] || refuse "$1 has $free GiB free and $2 are needed: make room there, or move it to a larger disk."
}

# apt_install PACKAGE...: what is missing of these, from the distribution, with none of their services started.
apt_install() {
  local package missing=()
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ "${#missing[@]}" -gt 0 ] || return 0
  command -v apt-get >/dev/null || refuse "this needs Debian or Ubuntu's apt-get to install ${missing[*]}: install them by hand."
  as_root apt-get update -qq
  # What a package would start is asked of policy-rc.d first; an operator's own stays as it is.
  # shellcheck disable=SC2016 # the inner shell expands it
  as_root sh -euc '
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
      trap "rm -f $policy" EXIT
      printf "#!/bin/sh\nexit 101\n" >"$policy"
      chmod 0755 "$policy"
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null
  ' apt_install "${missing[@]}"
}
