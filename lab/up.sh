#!/usr/bin/env bash
# The lab's hosts, bare: one container for each host of the inventory.
. "$(dirname "$0")/lib.sh"

step "Lab hosts" ansible-playbook lab/create.yml
