#!/usr/bin/python3 -I
"""The release agent: carries out the command that is named, see agent.py."""

import sys

# Laid out as Ansible does it for its modules, whose code this is.
sys.path.insert(0, "/usr/local/lib/trading-bot-release")

from ansible.module_utils.agent import main

sys.exit(main(sys.argv[1:]))
