"""Pure rules: values in, a decision out. Imports nothing outward."""
