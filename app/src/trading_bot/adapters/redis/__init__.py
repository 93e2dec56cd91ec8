"""Redis: the connection, the ledger, and the scripts."""
