"""A user's own losses and models in Python files: which files belong together, which options they have, how they load.

`source` and `signature` read such files without running them. Imports only the base layer. Start with `source`.
"""
