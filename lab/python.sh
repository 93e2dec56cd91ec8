#!/usr/bin/env bash
# The control node's virtual environment, from the hashed lock file.
. "$(dirname "$0")/lib.sh"

lock=requirements/control.txt
app=app/pyproject.toml

# Not the python of the environment itself, which may have to be made.
PATH=${PATH//"$root/.venv/bin:"/}
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
  refuse "Python 3.11 or later is needed: install python3 and python3-venv, or name one with PYTHON=..."

pip() { .venv/bin/python -m pip --quiet --quiet --disable-pip-version-check "$@"; }

build() {
  "$python" -c 'import ensurepip, venv' 2>/dev/null || apt_install python3-venv
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  pip install --require-hashes --only-binary=:all: -r "$lock"
  cp "$lock" .venv/.lock
}
add_app() {
  pip install --no-deps --no-build-isolation --editable app
  cp "$app" .venv/.app
}

# Two runs at once must not build the same directory.
exec 9>.venv.lock
flock 9

if cmp -s "$lock" .venv/.lock; then
  skip "Python environment .venv"
else
  need_space . 2
  step "Python environment .venv from $lock" build
fi
if ! cmp -s "$app" .venv/.app; then
  step "The app in the environment" add_app
fi
