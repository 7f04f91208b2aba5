"""What a storage holds, the way a person asks for it: a study by name or file, a trial by the first digits of its id,
foreign or missing files, and what can be removed.

Imports `results`, `study`, `storage` and the layers below. Start with `lookup`.
"""
