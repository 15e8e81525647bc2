"""The only door to native code: kernels on CPU and CUDA, each with a twin in pure torch."""

from pycc.ops._native import info, reference
from pycc.ops.ablate import (
    ablate,
    ablate_reference,
    ablation_indices,
    ablation_indices_reference,
)
from pycc.ops.bounds import (
    largest_untouched,
    largest_untouched_reference,
    log_probability_inside,
    log_probability_inside_reference,
    log_probability_untouched,
    log_probability_untouched_reference,
)
from pycc.ops.density import density_map, density_map_reference
from pycc.ops.paste import paste_patch, paste_patch_reference
from pycc.ops.sigma import adaptive_sigma, adaptive_sigma_reference

__all__ = [
    "ablate",
    "ablate_reference",
    "ablation_indices",
    "ablation_indices_reference",
    "adaptive_sigma",
    "adaptive_sigma_reference",
    "density_map",
    "density_map_reference",
    "info",
    "largest_untouched",
    "largest_untouched_reference",
    "log_probability_inside",
    "log_probability_inside_reference",
    "log_probability_untouched",
    "log_probability_untouched_reference",
    "paste_patch",
    "paste_patch_reference",
    "reference",
]
