"""Weights of a teacher that was trained elsewhere: the file formats, and what to say where weights do not fit a model.

Imports the base layer and `models`. Start with `weights`.
"""
