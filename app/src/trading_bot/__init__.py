"""A stateless order executor: validate, admit in one atomic step, answer."""
