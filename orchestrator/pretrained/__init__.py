"""Teacher weights that were trained elsewhere: file formats, and messages about weights that do not fit a model.

Imports the base layer and `models`. Start with `weight_files`.
"""
