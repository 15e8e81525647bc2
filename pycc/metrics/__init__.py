"""Metrics of counts and density maps (``counts``), and rates with intervals (``rates``)."""

from pycc.metrics.counts import (
    DensityLevel,
    ErrorRate,
    bias,
    bootstrap,
    density_levels,
    error_rate,
    game,
    mae,
    mae_by_group,
    mean_count,
    psnr,
    rmse,
    ssim,
)

__all__ = [
    "DensityLevel",
    "ErrorRate",
    "bias",
    "bootstrap",
    "density_levels",
    "error_rate",
    "game",
    "mae",
    "mae_by_group",
    "mean_count",
    "psnr",
    "rmse",
    "ssim",
]
