"""Finds what a person asks for in a storage: a study by name or file, a trial by the first digits of its id, foreign or
missing files, and what can be removed.

Imports `results`, `study`, `storage` and the layers below. Start with `lookup`.
"""
