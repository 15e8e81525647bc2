"""The attack in the physical world: photographs of scenes without and with a printed patch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pycc import metrics
from pycc.attack.evaluation.builder import Member
from pycc.checks import naming
from pycc.counters import frozen, identity
from pycc.data.dataset import Fingerprint, Pair, by_name, pair_up
from pycc.data.images import read_image
from pycc.data.pictures import pictures
from pycc.data.reading import MAX_IMAGE_PIXELS, Reading
from pycc.ranks import exact
from pycc.runs import Record, Run, open_or_resume
from pycc.types import Counter, Progress, Sample


def photographed(
    counter: Counter,
    clean: str | os.PathLike[str],
    attacked: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    bit_depth: int | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    progress: Progress | None = None,
    settings: Mapping[str, Any] | None = None,
    command: Sequence[str] = (),
) -> Run:
    """Count photos of scenes without (``clean``) and with (``attacked``) a printed patch.

    The two folders hold one photo of each scene under the same name, such as ``7.jpg`` and
    ``7.png``; the sizes of the two may differ. What is compared is the counter's prediction y on
    the clean photo and ŷ on the attacked one, by the error rate π = |y − ŷ| / |y| · 100 % of APAM
    (arXiv 2104.10868); annotations are not needed. Where y is 0, π is undefined: None.

    The result holds ``records`` (``index``, ``image``, ``condition`` "photo", ``size`` None,
    ``clean`` and ``count`` in people, ``error_rate`` in per cent) in numeric order of the names,
    and ``summary``. ``out`` is the run folder (new or empty), or None to keep the results in
    memory. ``bit_depth`` and ``max_image_pixels`` are those of ``pycc.data.load_image``; files
    that Pillow does not open are left out, with a warning that names them. ``progress`` is
    called with the number of pairs that are done. ``settings`` and ``command`` are for the
    manifest. A counter that is a module is put in eval mode and frozen meanwhile.

    ValueError, before anything is counted or written, for a folder without photos, a photo that
    has no partner in the other folder, two of one name, one that cannot be read or is smaller than
    a cell of the counter; and for a counter whose maps are not finite or do not match its stride.
    """
    reading = Reading(bit_depth, max_image_pixels)
    pairs = _pairs(Path(clean), Path(attacked))
    log = open_or_resume(
        out,
        kind="photo",
        command=command,
        settings={
            **(settings or {}),
            "clean": str(Path(clean).absolute()),
            "attacked": str(Path(attacked).absolute()),
        },
        fingerprints={
            "data": _survey(pairs, reading, counter.stride),
            "weights": identity(counter),
        },
        key=("image",),
        resume=False,
    )
    member = Member(counter)
    try:
        with frozen(counter), exact():
            for index, pair in enumerate(pairs):
                if progress is not None:
                    progress(index, len(pairs), pair.name)
                before, after = (_count(member, path, reading) for path in pair.files)
                log.append(
                    {
                        "index": index,
                        "image": pair.name,
                        "condition": "photo",
                        "patch_size": None,
                        "clean": before,
                        "count": after,
                        "error_rate": metrics.error_rate([before], [after]).percent,
                    }
                )
            if progress is not None:
                progress(len(pairs), len(pairs), "done")
    finally:
        log.close()
    log.finish(summarise_photos(log.records))
    return log


def summarise_photos(records: Sequence[Record]) -> dict[str, Any]:
    """Means over the photos: counts in people, the error rate in per cent where it is defined."""
    clean = [record["clean"] for record in records]
    count = [record["count"] for record in records]
    rate = metrics.error_rate(clean, count)
    return {
        "images": len(records),
        "mean_clean": metrics.mean_count(clean),
        "mean_count": metrics.mean_count(count),
        "error_rate": rate.percent,
        "error_rate_undefined": rate.undefined,
    }


def photo_table(summary: Mapping[str, Any], records: Sequence[Record]) -> str:
    """The photos and their mean as aligned text, with what needs saying about them below."""
    lines = [["photo", "clean count", "attacked count", "error rate %"]]
    for record in sorted(records, key=lambda one: int(one["index"])):
        values = (record[name] for name in ("clean", "count", "error_rate"))
        lines.append([record["image"], *map(_cell, values)])
    values = (summary[name] for name in ("mean_clean", "mean_count", "error_rate"))
    lines.append(["mean", *map(_cell, values)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    ]
    rule = "-" * len(text[0])
    text = [text[0], rule, *text[1:-1], rule, text[-1]]
    text.append(f"photos: {summary['images']}; error rate against the clean prediction")
    undefined = summary["error_rate_undefined"]
    if undefined:
        photos = "1 photo" if undefined == 1 else f"{undefined} photos"
        text.append(f"error rate undefined on {photos}: the clean prediction is 0")
    return "\n".join(text)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _pairs(clean: Path, attacked: Path) -> list[Pair]:
    """The photos of one name, in numeric order; ``annotation`` is the attacked one."""
    folders = {folder: _photos(folder) for folder in (clean, attacked)}
    for folder, other in ((clean, attacked), (attacked, clean)):
        for name, paths in folders[folder].items():
            if len(paths) > 1:
                raise ValueError(
                    f"{paths[1]}: expected one photo of a name, got {paths[0].name} too"
                )
            if name not in folders[other]:
                raise ValueError(
                    f"{paths[0]}: expected a photo of the same name in {other}, got none"
                )
    return pair_up(folders[clean], folders[attacked], "raise")


def _photos(folder: Path) -> dict[str, list[Path]]:
    """The pictures in a folder by their stem; ValueError if there are none."""
    paths = pictures(folder)
    if not paths:
        raise ValueError(f"{folder}: expected a folder of photos, got none in it")
    return by_name(paths)


def _survey(
    pairs: Sequence[Pair], reading: Reading, stride: int
) -> dict[str, dict[str, int | str]]:
    """Read every photo once, since only that tells whether it is whole: their fingerprints."""
    clean, attacked = Fingerprint(), Fingerprint()
    for pair in pairs:
        for path, photos in zip(pair.files, (clean, attacked), strict=True):
            with naming(str(path)):
                image = read_image(path, reading)
            height, width = image.shape[1:]
            if min(height, width) < stride:
                raise ValueError(
                    f"{path}: image must have at least one cell of {stride}x{stride} pixels, "
                    f"got {height}x{width}"
                )
            photos.add(Sample(pair.name, image, None))
    return {"clean": clean.json(), "attacked": attacked.json()}


def _count(member: Member, path: Path, reading: Reading) -> float:
    """The counter's count, in people, of a full photo."""
    return float(member.map(read_image(path, reading), str(path)).double().sum())
