"""What can be watched while a study runs: events, the state of a study, the live view, metrics for Prometheus and
Grafana.

Imports `cluster`, `catalog`, `results` and the layers below. Start with `events`, then `board`.
"""
