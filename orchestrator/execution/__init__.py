"""How trials run: an attempt at a trial from its lease to its row, the schedule of all trials, and the executors.

`inline` trains in this process; the folder `ray` holds everything that trains on Ray. Imports everything but `launch`
and the commands. Start with `attempt`, then `controller`.
"""
