"""Trials on Ray: one Tune experiment, the cluster that it runs on, and what Ray reports of both.

With `cluster.ray_jobs` the only modules that import Ray. Start with `executor`, then `_tune`.
"""
