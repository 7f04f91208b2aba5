"""What a storage holds, as a person asks for it: a study by name or file, a trial by part of its id, what is foreign or
missing, what can be removed.

Imports `results`, `study`, `storage` and the layers below. Start with `lookup`.
"""
