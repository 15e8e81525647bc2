"""Metrics of counts, of density maps, of ratios of counts, and shares with intervals.

All are pure functions that compute in float64.
"""

from pycc.metrics.counts import (
    DensityLevel,
    ErrorRate,
    bias,
    bootstrap,
    density_levels,
    error_rate,
    mae,
    mae_by_group,
    mean_count,
    rmse,
)
from pycc.metrics.detection import Roc, roc
from pycc.metrics.maps import game, psnr, ssim
from pycc.metrics.rates import (
    BANDS,
    BANDWIDTH,
    Ratios,
    accuracy,
    accurate,
    bands,
    kde,
    ratios,
    succeeded,
    success,
)
from pycc.metrics.shares import LEVEL, Difference, Share, difference, share, wilson

__all__ = [
    "BANDS",
    "BANDWIDTH",
    "LEVEL",
    "DensityLevel",
    "Difference",
    "ErrorRate",
    "Ratios",
    "Roc",
    "Share",
    "accuracy",
    "accurate",
    "bands",
    "bias",
    "bootstrap",
    "density_levels",
    "difference",
    "error_rate",
    "game",
    "kde",
    "mae",
    "mae_by_group",
    "mean_count",
    "psnr",
    "ratios",
    "rmse",
    "roc",
    "share",
    "ssim",
    "succeeded",
    "success",
    "wilson",
]
