"""Fewer kernels in a step on a GPU, where each costs microseconds, however small it is.

Imports nothing of kdctl. `casts` rounds all weights at once, `counters` keeps the counters of batch norms on the host,
and `scaling` makes float16 possible, for which cuDNN has batch norms of one kernel.
"""
