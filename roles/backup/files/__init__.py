"""Part of the backup command: a package, so that no other of this name on the host comes first."""
