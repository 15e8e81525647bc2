"""Common Python implementations of what the kernels compute, as baselines."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree
from torch import Tensor


def neighbour_widths(points: np.ndarray) -> np.ndarray:
    """Compute geometry-adaptive widths with scipy's k-d tree: 0.1 x the sum of three distances."""
    distances, _ = cKDTree(points).query(points, k=4)
    return np.asarray(0.1 * distances[:, 1:].sum(1))


def published_head(point: np.ndarray, sigma: float, shape: tuple[int, int]) -> np.ndarray:
    """Draw one head as in the published code: filter a full image with a single dot."""
    dot = np.zeros(shape, dtype=np.float32)
    dot[int(point[1]), int(point[0])] = 1.0
    return np.asarray(gaussian_filter(dot, sigma, mode="constant"))


def windowed(points: np.ndarray, sigmas: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Add the outer product of two 1-D kernels into the window of each head."""
    height, width = shape
    density = np.zeros(shape, dtype=np.float32)
    for (px, py), sigma in zip(points, sigmas, strict=True):
        x, y = int(px), int(py)
        radius = int(4.0 * sigma + 0.5)
        taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / max(sigma, 1e-12)) ** 2)
        taps = (taps / taps.sum()).astype(np.float32)
        top, bottom = max(y - radius, 0), min(y + radius + 1, height)
        left, right = max(x - radius, 0), min(x + radius + 1, width)
        density[top:bottom, left:right] += np.outer(
            taps[top - y + radius : bottom - y + radius],
            taps[left - x + radius : right - x + radius],
        )
    return density


def composite(
    images: Tensor, patch: Tensor, top_left: Tensor, angle: float, zoom: float, brightness: float
) -> Tensor:
    """Paste through affine_grid and grid_sample over the whole image, mask and patch."""
    count, channels, height, width = images.shape
    rows, cols = patch.shape[1:]
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    thetas = []
    for top, left in top_left.tolist():
        # Normalised image coordinates -> pixels relative to the patch's centre -> normalised patch.
        x_scale, y_scale = width / 2, height / 2
        x_shift = (width - 1) / 2 - left - (cols - 1) / 2
        y_shift = (height - 1) / 2 - top - (rows - 1) / 2
        thetas.append(
            [
                [
                    cosine * x_scale / zoom * 2 / cols,
                    -sine * y_scale / zoom * 2 / cols,
                    (cosine * x_shift - sine * y_shift) / zoom * 2 / cols,
                ],
                [
                    sine * x_scale / zoom * 2 / rows,
                    cosine * y_scale / zoom * 2 / rows,
                    (sine * x_shift + cosine * y_shift) / zoom * 2 / rows,
                ],
            ]
        )
    grid = F.affine_grid(
        torch.tensor(thetas), [count, channels, height, width], align_corners=False
    )
    values = (patch + brightness).clamp(0.0, 1.0).expand(count, -1, -1, -1)
    warped = F.grid_sample(values, grid, padding_mode="border", align_corners=False)
    ones = torch.ones(count, 1, rows, cols)
    mask = F.grid_sample(ones, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return mask * warped + (1.0 - mask) * images
