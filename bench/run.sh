#!/usr/bin/env bash
# Runs every benchmark, or the one that is named: bench/run.sh [NAME]. Each prints lines `<name> <value> <unit> goal <goal> ok|short`.
. "$(dirname "$0")/../lab/lib.sh"

mapfile -t all < <(find bench -name '*.py' -printf '%f\n' | sed 's/\.py$//' | sort)
[ $# -eq 0 ] || [ -f "bench/$1.py" ] || refuse "there is no benchmark '$1': choose from ${all[*]}."
for name in "${@:-${all[@]}}"; do
  step "bench $name" python "bench/$name.py"
done
