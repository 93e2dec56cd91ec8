#!/usr/bin/env bash
# Removes what `make demo` made: the lab's hosts, networks, keys, secrets and releases.
. "$(dirname "$0")/lib.sh"

if [ -x .venv/bin/ansible-playbook ] && docker info >/dev/null 2>&1; then
  step "Remove the lab" ansible-playbook lab/destroy.yml
else
  refuse "there is no engine or no environment to remove the lab with: run 'make env engine' first."
fi
