"""Datasets: the table of named datasets, the readers of their images, images as tensors in a canonical order, and the
views that augmentation can make of an image.

Imports `storage` and the layers below. Start with `registry`, then `prepare` and `tensors`.
"""
