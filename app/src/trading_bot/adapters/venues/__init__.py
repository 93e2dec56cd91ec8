"""Venues behind ``ports.Venue``."""
