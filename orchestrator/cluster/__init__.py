"""Ray clusters from outside: the kept cluster, its dashboard and tokens, jobs, and the supervisor of a launch. Only
`jobs` imports Ray.

Imports `catalog`, `storage`, `machine` and the layers below. Start with `kept_cluster`; `supervisor` starts a launch
again when Ray's processes die.
"""
