"""A teacher's outputs, live or from the table of all views; how the table is built and checked; a teacher's weights;
the teachers in a storage.

Imports `catalog`, `training`, `data` and the layers below. Start with `outputs`, then `tables`.
"""
