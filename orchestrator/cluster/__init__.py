"""Ray clusters from outside: the persistent cluster, dashboards and tokens, jobs, and the supervisor of a launch. Only
`jobs` imports Ray.

Imports `catalog`, `storage`, `machine` and the layers below. Start with `persistent_cluster`; `supervisor` starts a
launch again when Ray's processes die.
"""
