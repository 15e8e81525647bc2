"""The pictures of ``pycc certify``: the curve, and where a patch would hurt most."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pycc.certify import Certificate, CertifyRun
from pycc.certify.maps import certified_map, shape_of
from pycc.defense.windows import window_of
from pycc.report import certificates
from pycc.types import Counter, Sample

_IMAGES = 3
"""Images of the widest intervals that are drawn."""


def draw(
    result: CertifyRun,
    counter: Counter,
    samples: Sequence[Sample],
    method: Certificate,
    patch_sizes: Sequence[int],
    folder: Path,
) -> None:
    """Draw the curve of a run and its images of the widest intervals into ``folder/pictures``.

    The intervals are those of one method and of the third patch size, or the last of fewer.
    """
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    certificates.draw_curve(result.summary.json(), pictures / "curve.png")
    if counter.receptive_field is None:
        return
    sizes = tuple(dict.fromkeys(patch_sizes))
    patch_size = sizes[min(2, len(sizes) - 1)]
    key = method.name, patch_size
    records = [r for r in result.records if (r["method"], r["patch_size"]) == key]
    by_name = {sample.name: sample for sample in samples}
    for record in certificates.widest(records, _IMAGES):
        sample = by_name[record["image"]]
        density = certified_map(counter, sample).cpu()
        window = window_of(counter, patch_size, shape_of(sample.image), shape_of(density))
        slack = method.slack_map(density, window, result.calibration)
        top, left = divmod(int(slack.argmax()), slack.shape[1])
        stride = counter.stride
        heads = "" if record["truth"] is None else f"{record['truth']:.0f} heads, "
        certificates.draw_intervals(
            np.ascontiguousarray(sample.image.permute(1, 2, 0).numpy()),
            slack.float().numpy(),
            method.slack_label,
            f"{sample.name}: {heads}{record['count']:.0f} counted by {method.name}, "
            f"{record['low']:.0f} to {record['high']:.0f} whatever {patch_size} pixels show",
            pictures / f"{record['index']:04d}-{method.name}-{patch_size}.png",
            (left * stride, top * stride, window[1] * stride, window[0] * stride),
        )
