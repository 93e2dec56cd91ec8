"""A paper exchange: a process of its own that behaves as one over the network."""
