"""The training loop, its checkpoints and its captured CUDA graphs, with tensors alone: no Ray, no studies, no results.
The tables of `optimizers` and `schedules` can be read without torch.

Imports `data`, `storage` for checkpoints, and the layers below. Start with `loop`, then `state`.
"""
