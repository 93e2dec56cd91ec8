"""Part of the release agent: a package, so that no other of this name on the host comes first."""
