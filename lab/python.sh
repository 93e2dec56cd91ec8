#!/usr/bin/env bash
# The control node's virtual environment, from the hashed lock file.
. "$(dirname "$0")/lib.sh"

lock=requirements/control.txt
stamp=.venv/.lock

# Not the python of the environment that may have to be replaced.
PATH=${PATH//"$root/.venv/bin:"/}
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
  refuse "Python 3.11 or later is needed: install python3 and python3-venv, or name one with PYTHON=..."

if cat "$lock" app/pyproject.toml | cmp -s - "$stamp"; then
  skip "Python environment .venv"
  exit 0
fi
"$python" -c 'import ensurepip, venv' 2>/dev/null || apt_install python3-venv
need_space . 2

build() {
  rm -rf .venv
  "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary=:all: -r "$lock"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable app
  cat "$lock" app/pyproject.toml >"$stamp"
}
step "Python environment .venv from $lock" build
