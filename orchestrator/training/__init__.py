"""The training loop, its checkpoints and its captured CUDA graphs: tensors alone, without Ray, studies or results.

Imports `data`, `storage` for checkpoints, and the layers below. Start with `training.train`.
"""
