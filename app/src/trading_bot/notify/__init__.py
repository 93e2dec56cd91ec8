"""The notifier: a process of its own that tells people what is wrong, each of them once, by how bad it is."""
