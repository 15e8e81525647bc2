"""Call the compiled kernels: paste a patch, and find the fullest window of a map."""

import torch

from pycc import data, ops

images = torch.stack([s.image for s in data.open("synthetic", limit=2, shape=(192, 256))])
patch = torch.rand(3, 48, 48, requires_grad=True)
pasted = ops.paste_patch(images, patch, top_left=torch.tensor([[20, 30], [80, 150]]), angle=15.0)
(gradient,) = torch.autograd.grad(pasted.sum(), patch)  # differentiable, as its twin in torch
most, place = ops.max_window_sum(pasted.detach().mean(1), (10, 10))
print(ops.info())
print(f"fullest windows: {most.tolist()} at {place.tolist()}")

with ops.reference():  # the twins instead of the kernels
    assert torch.equal(ops.max_window_sum(pasted.detach().mean(1), (10, 10))[1], place)
data.save_image("kernels.png", torch.cat([*pasted.detach()], dim=2))
