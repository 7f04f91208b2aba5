"""Ray clusters as seen from outside, without Ray: the kept cluster, its dashboard, jobs, the supervisor of a launch.

Imports `catalog`, `storage`, `machine` and the layers below. Start with `cluster`; `supervisor` starts a launch again
when Ray's processes die.
"""
