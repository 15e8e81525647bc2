"""Published crowd counters, and any user network, behind one protocol.

Every counter maps images [N,3,H,W], RGB in [0,1], to a density map [N,1,h,w] in people per cell.
"""

from __future__ import annotations

from pycc.models import can as _can  # noqa: F401  (importing a model registers it)
from pycc.models import clip_ebc as _clip_ebc  # noqa: F401
from pycc.models import cmtl as _cmtl  # noqa: F401
from pycc.models import csrnet as _csrnet  # noqa: F401
from pycc.models import danet as _danet  # noqa: F401
from pycc.models import fidtm as _fidtm  # noqa: F401
from pycc.models import mask_aware as _mask_aware  # noqa: F401
from pycc.models import mcnn as _mcnn  # noqa: F401
from pycc.models import narrow as _narrow  # noqa: F401
from pycc.models import p2pnet as _p2pnet  # noqa: F401
from pycc.models import sfanet as _sfanet  # noqa: F401
from pycc.models import steerer as _steerer  # noqa: F401
from pycc.models import vgg19 as _vgg19  # noqa: F401
from pycc.models import zip as _zip  # noqa: F401
from pycc.models.base import MODELS, CounterModel
from pycc.models.convention import Convention
from pycc.models.exchange import black_box, export_onnx
from pycc.models.lightweight import lightweight
from pycc.models.loading import create, load, names
from pycc.models.points import PointCounter
from pycc.models.probe import diagnose
from pycc.models.recipe import Boxes, Crop, NoRecipeError, Optimiser, Recipe, Schedule
from pycc.models.verify import ReceptiveField, measure_receptive_field
from pycc.models.weights import builtin, save
from pycc.models.wrap import wrap

__all__ = [
    "MODELS",
    "Boxes",
    "Convention",
    "CounterModel",
    "Crop",
    "NoRecipeError",
    "Optimiser",
    "PointCounter",
    "ReceptiveField",
    "Recipe",
    "Schedule",
    "black_box",
    "builtin",
    "create",
    "diagnose",
    "export_onnx",
    "lightweight",
    "load",
    "measure_receptive_field",
    "names",
    "save",
    "wrap",
]
