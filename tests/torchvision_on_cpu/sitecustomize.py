"""Lets torchvision be imported beside a CPU build of torch, for whoever has this folder on PYTHONPATH.

PyPI's torchvision is linked against CUDA. Beside torch without CUDA its compiled operators do not load, and then its Python part, all that
mmpretrain's transforms need, refuses to be imported. The operators that it asks for are declared here, and stay without an implementation.
"""

import torch

if torch.version.cuda is None:
    for operator in ('nms', 'qnms'):
        torch.library.define(f'torchvision::{operator}', '(Tensor dets, Tensor scores, float threshold) -> Tensor')
