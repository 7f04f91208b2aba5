"""A user's own losses, models and datasets in Python files: which files belong together, which options they have, how
they load.

`source` and `signature` read such files without running them. Imports `data` and the layers below. Start with `source`.
"""
