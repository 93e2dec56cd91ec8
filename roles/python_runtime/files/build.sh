#!/bin/sh
# Builds a virtual environment from wheels alone and marks it complete as its last step, so that a build that was cut
# off is started anew. Then drops the wheels that it did not need.
# Usage: build.sh INTERPRETER VENV FINGERPRINT WHEELS APP_WHEEL FILE...   (FILE: every name that belongs in WHEELS)
set -eu
interpreter=$1 venv=$2 fingerprint=$3 wheels=$4 app=$5
shift 5

rm -rf "$venv"
"$interpreter" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --isolated --disable-pip-version-check --quiet "$@"; }
pip install --no-index --find-links "$wheels" --require-hashes --only-binary :all: -r "$wheels/requirements.txt"
pip install --no-index --no-deps "$wheels/$app"
pip check
chmod -R go+rX,go-w "$venv"

printf '%s' "$fingerprint" > "$venv/.complete.new"
sync "$venv/.complete.new"
mv "$venv/.complete.new" "$venv/.complete"

for path in "$wheels"/*; do
    case " $* " in
        *" ${path##*/} "*) ;;
        *) rm -f "$path" ;;
    esac
done
