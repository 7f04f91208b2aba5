"""Datasets: the table of those with a name, the readers of their images, images as tensors in a canonical order, and
the views into which an image can be augmented.

Imports `storage` and the layers below. Start with `registry`, then `prepare` and `tensors`.
"""
