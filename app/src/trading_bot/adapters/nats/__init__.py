"""NATS: requests, events, the release bucket."""
