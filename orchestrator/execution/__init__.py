"""How trials run: one trial from its lease to its row, the schedule of all, and the two executors, in this process
and on Ray.

Imports everything but `launch` and the commands. Start with `trial.run_trial`, then `runner`.
"""
