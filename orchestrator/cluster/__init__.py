"""Ray clusters from outside: the persistent cluster, dashboards and tokens, jobs, and the supervisor of a launch. Only
`ray_jobs` imports Ray.

Imports `catalog`, `storage`, `machine` and the layers below. Start with `persistent_cluster`; `launch_supervisor`
starts a launch again when Ray's processes die.
"""
