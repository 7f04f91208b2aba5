"""What a teacher says: its outputs, live or out of the table of all views, how the table is built, and which teachers a
storage holds.

Imports `catalog`, `training`, `data` and the layers below. Start with `teacher`.
"""
