"""Make the density map of head annotations."""

import torch

from pycc import ops

heads = torch.tensor([[30.0, 20.0], [34.0, 22.0], [70.5, 48.0]])  # [N,2] (x, y), pixels
sigma = ops.adaptive_sigma(heads, neighbours=2)
density = ops.density_map(heads, sigma, (96, 128), boundary="renormalize", stride=4)
print(f"{tuple(density.shape)} cells, {density.sum():.3f} people")
