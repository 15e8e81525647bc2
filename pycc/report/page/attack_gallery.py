"""The gallery of an attack: each image without and with its worst patch, under a slider."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pycc.report.page.attack_facts import AttackCount, AttackFacts, Change
from pycc.report.page.blocks import Block, Gallery, Overlay, Pair, Text
from pycc.report.page.contents import Options
from pycc.report.page.images import jpeg_uri, map_uri, patch_uri
from pycc.report.page.words import number_of, people, size_text

MOST = 200
"""Images of a gallery, at most."""
MOST_BYTES = 5_000_000
"""All clean images together: with patches and maps, a page of 200 images stays below 15 MB."""
_SIDE, _MOST_BYTES_OF_ONE = 960, 120_000
"""The longer side, and the bytes, of one image in a small gallery."""


def gallery(facts: AttackFacts, options: Options) -> tuple[Block, ...]:
    """The images whose counts a patch moves most, or why there are none."""
    if not facts.settings.attacks:
        return ()
    if not options.pictures:
        return (Text(("Images were left out (--no-pictures); pycc report RUN shows them.",)),)
    if not facts.settings.save_images:
        return (Text(("The run kept no images (--no-save-images), so none can be shown.",)),)
    changes = worst_changes(facts)
    kept = [change for change in changes if clean_file(facts, change).exists()]
    lost = len(changes) - len(kept)
    shown = kept[:MOST]
    if not shown:
        return (Text(("The run folder holds no images any more, so none can be shown.",)),)
    budget = min(_MOST_BYTES_OF_ONE, MOST_BYTES // len(shown))
    pairs = tuple(_pair(facts, change, budget) for change in shown)
    notes = []
    if len(kept) > MOST:
        notes.append(f"The {MOST} worst of {number_of(len(kept), 'image')}.")
    if lost:
        notes.append(f"Not in the run folder any more: {number_of(lost, 'image')}.")
    made = Gallery(pairs, tuple(notes))
    if not made.mapped:
        notes.append("No density maps: the run kept none; it does if pictures are drawn.")
    return (Gallery(pairs, tuple(notes)),)


def worst_changes(facts: AttackFacts) -> list[Change]:
    """Choose for each image the patch that moves its count most; the largest shift comes first."""
    worst: dict[int, Change] = {}
    rows = [row for row in facts.counts if row.condition in facts.names and row.file is not None]
    for change in facts.changes(rows):
        known = worst.get(change.attacked.index)
        if known is None or abs(change.people) > abs(known.people):
            worst[change.attacked.index] = change
    return sorted(worst.values(), key=lambda change: -abs(change.people))


def clean_file(facts: AttackFacts, change: Change) -> Path:
    """The clean image of a change in the run folder."""
    return facts.run.folder / "images" / f"{change.clean.file}.png"


def density_of(facts: AttackFacts, row: AttackCount) -> NDArray[np.float32] | None:
    """The density map [h,w] of a count; None if the run did not keep it, or it is damaged."""
    by = "" if row.victim is None else "-by-" + re.sub(r"[^A-Za-z0-9._-]+", "_", row.victim)
    file = facts.run.folder / "maps" / f"{row.file}{by}.npz"
    if not file.exists():
        return None
    try:
        with np.load(file) as stored:
            density: NDArray[np.float32] = stored["density"]
    except (OSError, ValueError, KeyError, BadZipFile):
        return None
    return density if density.ndim == 2 else None


def _pair(facts: AttackFacts, change: Change, budget: int) -> Pair:
    clean, attacked = change.clean, change.attacked
    file = clean_file(facts, change)
    try:
        with Image.open(file) as image:
            uri, width, height = jpeg_uri(image, side=_SIDE, most=budget)
    except OSError as error:
        raise ValueError(f"{file}: expected an image, got something else ({error})") from None
    maps = [density_of(facts, row) for row in (clean, attacked)]
    overlays = _maps(maps, clean)
    return Pair(attacked.image, uri, width, height, _facts(change), _patch(facts, attacked),
                *overlays)  # fmt: skip


def _facts(change: Change) -> tuple[str, ...]:
    clean, attacked = change.clean, change.attacked
    percent = "" if change.percent is None else f", {change.percent:+,.0f} %"
    heads = "not annotated" if clean.truth is None else f"{clean.truth:,.0f} heads annotated"
    return (
        f"{people(clean.count)} people counted clean, {people(attacked.count)} with the patch "
        f"({change.people:+,.1f}{percent})",
        f"{attacked.condition} patch, {size_text(attacked.patch_size)}; {heads}",
    )


def _patch(facts: AttackFacts, row: AttackCount) -> Overlay | None:
    """The patch where it lies; None if the run folder does not hold it."""
    file = facts.run.folder / "patches" / f"{row.file}.png"
    if row.top_left is None or row.side is None or not file.exists():
        return None
    (y, x), side = row.top_left, row.side
    return Overlay(patch_uri(file), 100 * x / row.width, 100 * y / row.height,
                   100 * side / row.width, 100 * side / row.height)  # fmt: skip


def _maps(
    maps: Sequence[NDArray[np.float32] | None], row: AttackCount
) -> tuple[Overlay | None, Overlay | None]:
    """The density maps in one scale, each where its cells lie; None unless both are known."""
    clean, attacked = maps
    if clean is None or attacked is None:
        return None, None
    # A quantile: one cell of an attacked map may hold a hundred times as many as all others.
    top = max(float(np.quantile(density, 0.999)) for density in (clean, attacked))
    placed = []
    for density in (clean, attacked):
        stride = round(row.width / density.shape[1])
        placed.append(Overlay(
            map_uri(density, top), 0.0, 0.0, 100 * density.shape[1] * stride / row.width,
            100 * density.shape[0] * stride / row.height,
        ))  # fmt: skip
    return placed[0], placed[1]
