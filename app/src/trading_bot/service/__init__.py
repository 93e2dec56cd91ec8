"""What the executor does, in terms of the ports."""
