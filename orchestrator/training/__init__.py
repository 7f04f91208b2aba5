"""The training loop, its checkpoints and its CUDA graphs. It knows only tensors: no Ray, no studies, no results. The
tables of `optimizers` and `schedules` can be read without torch.

Imports `data`, `storage` for checkpoints, and the layers below. Start with `loop`, then `state`.
"""
