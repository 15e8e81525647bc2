"""Certified counts: intervals that no patch can push a count out of.

A certificate bounds the prediction of a defended counter, whatever a patch of the stated size shows
and wherever it lies. ``completion`` (the default), ``masked``, ``additive``, ``two_mask`` and
``fixed_ablations`` are deterministic; ``alarm`` bounds the counts of attacked images that raise no
alarm; ``quantile`` holds with a stated probability over its draws; ``conformal`` converts an
interval on the prediction into one on the number of people. ``partition_median`` certifies against
poisoned training images instead of patches.

These functions certify one image. ``calibrate`` and ``run`` certify a data set, with any of the
``certificates``; the command ``pycc certify`` does the same.
"""

from pycc.certify.attacked import adaptive_attack
from pycc.certify.calibration import (
    CalibratedCompletion,
    CalibratedNumber,
    Calibration,
    cap_of,
)
from pycc.certify.conformal import conformal, conformal_margin
from pycc.certify.engine import calibrate, run
from pycc.certify.fixed import fixed_ablations_bounds
from pycc.certify.laws import exposure
from pycc.certify.maps import check_field, mixed, slack_map
from pycc.certify.mean import mean_bounds
from pycc.certify.methods import (
    Additive,
    Alarm,
    Certificate,
    Completion,
    FixedAblations,
    Masked,
    Quantile,
    TwoMask,
    additive,
    alarm,
    certificates,
    completion,
    fixed_ablations,
    masked,
    quantile,
    two_mask,
)
from pycc.certify.paper import counterexample, probability_inside, probability_untouched
from pycc.certify.poisoned import most_poisoned, partition_median, partitions
from pycc.certify.quantile import estimate_interval, quantile_bounds
from pycc.certify.results import AttackedRow, CertifyRow, CertifyRun, CertifySummary
from pycc.defense.masking import allowance_of
from pycc.types import Interval

__all__ = [
    "Additive",
    "Alarm",
    "AttackedRow",
    "CalibratedCompletion",
    "CalibratedNumber",
    "Calibration",
    "Certificate",
    "CertifyRow",
    "CertifyRun",
    "CertifySummary",
    "Completion",
    "FixedAblations",
    "Interval",
    "Masked",
    "Quantile",
    "TwoMask",
    "adaptive_attack",
    "additive",
    "alarm",
    "allowance_of",
    "calibrate",
    "cap_of",
    "certificates",
    "check_field",
    "completion",
    "conformal",
    "conformal_margin",
    "counterexample",
    "estimate_interval",
    "exposure",
    "fixed_ablations",
    "fixed_ablations_bounds",
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
    "run",
    "slack_map",
    "two_mask",
]
