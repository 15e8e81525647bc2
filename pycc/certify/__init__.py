"""Certified counts: intervals that no patch can push a count out of.

A certificate speaks of the prediction of a defended counter: whatever a patch of the stated size
shows, wherever it lies, what that counter says stays inside. ``masked`` (the default),
``additive``, ``two_mask`` and ``fixed_masks`` always hold; ``quantile`` holds with a stated
probability over its own draws; ``conformal`` turns an interval on the prediction into one on the
number of people. ``partition_median`` speaks of poisoned training images instead of patches.
"""

from pycc.certify.calibration import Calibration, allowance_of, cap_of
from pycc.certify.conformal import calibrate, conformal
from pycc.certify.drawn import fixed_masks, quantile, two_mask
from pycc.certify.maps import additive, check_field, masked, mixed, slack_map
from pycc.certify.paper import counterexample, probability_inside, probability_untouched
from pycc.certify.poisoned import most_poisoned, partition_median, partitions
from pycc.certify.quantile import (
    estimate_interval,
    exposure,
    fixed_masks_bounds,
    mean_bounds,
    quantile_bounds,
)
from pycc.types import Interval

__all__ = [
    "Calibration",
    "Interval",
    "additive",
    "allowance_of",
    "calibrate",
    "cap_of",
    "check_field",
    "conformal",
    "counterexample",
    "estimate_interval",
    "exposure",
    "fixed_masks",
    "fixed_masks_bounds",
    "masked",
    "mean_bounds",
    "mixed",
    "most_poisoned",
    "partition_median",
    "partitions",
    "probability_inside",
    "probability_untouched",
    "quantile",
    "quantile_bounds",
    "slack_map",
    "two_mask",
]
