"""How trials run: one attempt at a trial from its lease to its row, the schedule of all trials, and the executors,
which run them in this process or on Ray.

Imports everything but `launch` and the commands. Start with `attempt`, then `controller`.
"""
