"""Compiled kernels for CPU and CUDA, each with a twin in pure torch.

This package alone calls the compiled module. A kernel is chosen by the device of its tensors.
Inside ``with pycc.ops.reference():``, or with the environment variable ``PYCC_OPS=reference``, the
twins run instead.
"""

from pycc.ops._native import info, reference
from pycc.ops.ablate import (
    ablate,
    ablate_reference,
    ablation_indices,
    ablation_indices_reference,
)
from pycc.ops.adaptive_sigma import adaptive_sigma, adaptive_sigma_reference
from pycc.ops.deform_conv import deform_conv, deform_conv_reference
from pycc.ops.density_map import density_map, density_map_reference
from pycc.ops.keep_windows import keep_windows, keep_windows_reference
from pycc.ops.log_probability import (
    largest_untouched,
    largest_untouched_reference,
    log_probability_inside,
    log_probability_inside_reference,
    log_probability_untouched,
    log_probability_untouched_reference,
)
from pycc.ops.mask_hits import mask_hits, mask_hits_reference
from pycc.ops.max_pair_sum import max_pair_sum, max_pair_sum_reference
from pycc.ops.max_window_sum import max_window_sum, max_window_sum_reference
from pycc.ops.pair_extremes import WindowPairs, pair_extremes, pair_extremes_reference
from pycc.ops.paste_patch import paste_patch, paste_patch_reference
from pycc.ops.topk_overlap import topk_overlap, topk_overlap_reference

__all__ = [
    "WindowPairs",
    "ablate",
    "ablate_reference",
    "ablation_indices",
    "ablation_indices_reference",
    "adaptive_sigma",
    "adaptive_sigma_reference",
    "deform_conv",
    "deform_conv_reference",
    "density_map",
    "density_map_reference",
    "info",
    "keep_windows",
    "keep_windows_reference",
    "largest_untouched",
    "largest_untouched_reference",
    "log_probability_inside",
    "log_probability_inside_reference",
    "log_probability_untouched",
    "log_probability_untouched_reference",
    "mask_hits",
    "mask_hits_reference",
    "max_pair_sum",
    "max_pair_sum_reference",
    "max_window_sum",
    "max_window_sum_reference",
    "pair_extremes",
    "pair_extremes_reference",
    "paste_patch",
    "paste_patch_reference",
    "reference",
    "topk_overlap",
    "topk_overlap_reference",
]
