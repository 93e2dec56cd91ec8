"""Part of the command that takes over copies: a package, so that no other of this name on the host comes first."""
