#!/usr/bin/python3 -I
"""Copies of other hosts' backups: carries out the command that is named, see backup_copies.py."""

import sys

# Laid out as Ansible does it for its modules, whose code this is.
sys.path.insert(0, "/usr/local/lib/trading-bot-copies")

from ansible.module_utils.backup_copies import main

sys.exit(main(sys.argv[1:]))
