"""Call the compiled kernels: paste a patch, and find the fullest window of a map."""

import torch

from pycc import ops

images, patch = torch.rand(2, 3, 64, 96), torch.rand(3, 16, 16, requires_grad=True)
pasted = ops.paste_patch(images, patch, top_left=torch.tensor([[4, 8], [20, 30]]), angle=15.0)
(gradient,) = torch.autograd.grad(pasted.sum(), patch)  # differentiable, as its twin in torch
most, place = ops.max_window_sum(pasted.detach().mean(1), (10, 10))
print(ops.info())
print(f"fullest windows: {most.tolist()} at {place.tolist()}")

with ops.reference():  # the twins instead of the kernels
    assert torch.equal(ops.max_window_sum(pasted.detach().mean(1), (10, 10))[1], place)
