"""Annotated crowd images: published data sets, folders of images and built-in scenes."""

from __future__ import annotations

from pycc.data import (  # noqa: F401 (register)
    arrays,
    cclabeler,
    coco,
    cvat,
    jhu,
    labelme,
    mall,
    nwpu,
    p2pnet,
    shanghaitech,
    synthetic,
    ucf,
    ucsd,
    via,
    worldexpo,
)
from pycc.data.dataset import (
    Dataset,
    Format,
    NotAnnotatedError,
    Pair,
    PairedFiles,
    Refuse,
    by_name,
    formats,
    pair_up,
)
from pycc.data.density import density, downsample
from pycc.data.images import load_image, load_opacity, mean_colour, quantize, save_image
from pycc.data.opening import open
from pycc.data.subset import apart

__all__ = [
    "Dataset",
    "Format",
    "NotAnnotatedError",
    "Pair",
    "PairedFiles",
    "Refuse",
    "apart",
    "by_name",
    "density",
    "downsample",
    "formats",
    "load_image",
    "load_opacity",
    "mean_colour",
    "open",
    "pair_up",
    "quantize",
    "save_image",
]
