"""The certificate methods; importing one registers it."""

from pycc.certify.methods.additive import Additive, additive
from pycc.certify.methods.alarm import Alarm, alarm
from pycc.certify.methods.base import Certificate, certificates
from pycc.certify.methods.completion import Completion, completion
from pycc.certify.methods.fixed_ablations import FixedAblations, fixed_ablations
from pycc.certify.methods.masked import Masked, masked
from pycc.certify.methods.quantile import Quantile, quantile
from pycc.certify.methods.two_mask import TwoMask, two_mask

__all__ = [
    "Additive",
    "Alarm",
    "Certificate",
    "Completion",
    "FixedAblations",
    "Masked",
    "Quantile",
    "TwoMask",
    "additive",
    "alarm",
    "certificates",
    "completion",
    "fixed_ablations",
    "masked",
    "quantile",
    "two_mask",
]
