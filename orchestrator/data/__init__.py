"""Datasets: the table of those with a name, the layouts in which people have them, images as tensors in their canonical
order, and the views into which an image can be augmented.

Imports `storage` and the layers below. Start with `datasets`, then `data.Data`.
"""
