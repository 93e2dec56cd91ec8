#!/bin/sh
# Removes the oldest virtual environments, and those whose build was cut off, and prints what it removed. One that a
# link points to is kept, however old.
# Usage: prune.sh ROOT CURRENT KEEP
set -eu
root=$1 current=$2 keep=$3

cd "$root/venvs"
kept=0
# Newest first; names are plain, the role checks that.
# shellcheck disable=SC2012
ls -t | while read -r name; do
    if [ -e "$name/.complete" ]; then
        kept=$((kept + 1))
        if [ "$name" = "$current" ] || [ "$kept" -le "$keep" ]; then
            continue
        fi
    fi
    if [ -n "$(find "$root" -path "$root/venvs" -prune -o -type l \
        \( -lname "$root/venvs/$name" -o -lname "$root/venvs/$name/*" \) -print -quit)" ]; then
        continue
    fi
    rm -rf "./$name"
    echo "$root/venvs/$name"
done
