"""What can be watched while a study runs: events, the status of a study, the live view, metrics for Prometheus and
Grafana.

Imports `cluster`, `catalog`, `results` and the layers below. Start with `events`, then `study_status`: it keeps the
status of a study up to date, from the events of a launch or from its storage (`follow`).
"""
