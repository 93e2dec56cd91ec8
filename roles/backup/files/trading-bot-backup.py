#!/usr/bin/python3 -I
"""Backups of this host: carries out the command that is named, see backup_agent.py."""

import sys

# Laid out as Ansible does it for its modules, whose code this is.
sys.path.insert(0, "/usr/local/lib/trading-bot-backup")

from ansible.module_utils.backup_agent import main

sys.exit(main(sys.argv[1:]))
