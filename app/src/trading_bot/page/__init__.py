"""The built-in page: the fleet, its releases, the rollout and the alerts, for people without Grafana."""
