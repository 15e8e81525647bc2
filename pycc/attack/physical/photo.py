"""The attack in the physical world: photographs of scenes without and with a printed patch."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pycc import metrics
from pycc.attack.evaluation.builder import Member
from pycc.checks import naming
from pycc.counters import frozen, identity
from pycc.data.dataset import Fingerprint, Pair, by_name, pair_up
from pycc.data.images import read_image
from pycc.data.pictures import pictures
from pycc.data.reading import MAX_IMAGE_PIXELS, Reading
from pycc.ranks import Ranks, exact
from pycc.report.summary import aligned, people
from pycc.runs import Record, Run, open_or_resume, sharded
from pycc.settings import values_of
from pycc.types import Counter, Progress, Sample

KIND = "photo"
"""The kind of run in the manifest."""
KEY = ("image",)


@dataclass(frozen=True)
class PhotoRow:
    """The counts of one scene, in people.

    >>> PhotoRow(0, "square", clean=20.0, count=25.0, error_rate=25.0).json()["condition"]
    'photo'
    """

    index: int
    """The scene's position in the numeric order of the names."""
    image: str
    """The photo's name without suffix."""
    clean: float
    """Without the patch."""
    count: float
    """With the patch."""
    error_rate: float | None
    """Per cent of the clean count; None where that is 0."""

    def json(self) -> Record:
        """Return it as a JSON object, a line of ``results.jsonl``."""
        return {"condition": "photo", "patch_size": None, **asdict(self)}

    @classmethod
    def of(cls, record: Record) -> PhotoRow:
        """The row of a line of ``results.jsonl``."""
        return cls(**{entry.name: record[entry.name] for entry in fields(cls)})


@dataclass(frozen=True)
class PhotoSummary:
    """Means over the photos: counts in people, the error rate in per cent where it is defined.

    >>> rows = [PhotoRow(0, "a", 20.0, 25.0, 25.0), PhotoRow(1, "b", 10.0, 9.0, 10.0)]
    >>> PhotoSummary.of(rows).error_rate
    17.5
    """

    images: int
    mean_clean: float
    mean_count: float
    error_rate: float | None
    error_rate_undefined: int
    """Photos whose clean count is 0."""

    @classmethod
    def of(cls, rows: Sequence[PhotoRow]) -> PhotoSummary:
        """Compute the means of photos."""
        clean, count = [row.clean for row in rows], [row.count for row in rows]
        rate = metrics.error_rate(clean, count)
        return cls(
            images=len(rows),
            mean_clean=metrics.mean_count(clean),
            mean_count=metrics.mean_count(count),
            error_rate=rate.percent,
            error_rate_undefined=rate.undefined,
        )


@dataclass(frozen=True)
class PhotoRun:
    """The result of ``photographed``.

    >>> summary = PhotoSummary.of([row := PhotoRow(0, "a", 20.0, 25.0, 25.0)])
    >>> run = open_or_resume(None, kind="photo", settings={}, fingerprints={}, key=("image",))
    >>> PhotoRun((row,), summary, run).rows[0].image
    'a'
    """

    rows: tuple[PhotoRow, ...]
    """In numeric order of the names."""
    summary: PhotoSummary
    run: Run
    """The run itself: its manifest, records and folder."""


def photographed(
    counter: Counter,
    clean: str | os.PathLike[str],
    attacked: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    bit_depth: int | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    progress: Progress | None = None,
    ranks: Ranks = Ranks(),
    settings: object | None = None,
    command: Sequence[str] = (),
    machine: Collection[str] = (),
) -> PhotoRun:
    """Count photos of scenes without (``clean``) and with (``attacked``) a printed patch.

    The two folders hold one photo of each scene under the same name, such as ``7.jpg`` and
    ``7.png``; the sizes of the two may differ. What is compared is the counter's prediction y on
    the clean photo and ŷ on the attacked one, by the error rate π = |y − ŷ| / |y| · 100 % of APAM
    (arXiv 2104.10868); annotations are not needed. Where y is 0, π is undefined: None.

    ``out`` is the run folder (new or empty), or None to keep the results in memory; ``resume``
    continues the run in it. ``ranks`` are the processes of torchrun, which share the photos; each
    of them gets all rows. ``bit_depth`` and ``max_image_pixels`` are those of
    ``pycc.data.load_image``; files that Pillow does not open are left out, with a warning that
    names them. ``progress`` is called with the number of pairs that are done. ``settings`` (a
    dataclass), ``command`` and ``machine`` are stored and compared as in
    ``pycc.runs.open_or_resume``. A counter that is a module is put in eval mode and frozen
    meanwhile.

    ValueError, before anything is counted or written, for a folder without photos, a photo that
    has no partner in the other folder, two of one name, one that cannot be read or is smaller than
    a cell of the counter; for a resumed run with other settings, photos or weights; and for a
    counter whose maps are not finite or do not match its stride.


    >>> import tempfile
    >>> from pycc import data, models
    >>> image = data.open("synthetic", limit=1, shape=(64, 96))[0].image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("clean", "attacked"):
    ...         Path(folder, name).mkdir()
    ...         data.save_image(f"{folder}/{name}/1.png", image)
    ...     counter = models.load("mcnn-synthetic")
    ...     done = photographed(counter, f"{folder}/clean", f"{folder}/attacked")
    >>> [row.error_rate for row in done.rows]
    [0.0]
    """
    reading = Reading(bit_depth, max_image_pixels)
    pairs = _pairs(Path(clean), Path(attacked))
    stored: dict[str, object] = {
        "clean": str(Path(clean).absolute()),
        "attacked": str(Path(attacked).absolute()),
    }
    if settings is not None:
        stored["flags"] = values_of(settings)

    def opened() -> Run:
        return open_or_resume(
            out,
            kind=KIND,
            command=command,
            settings=stored,
            fingerprints={
                "data": _fingerprints(pairs, reading, counter.stride),
                "weights": identity(counter),
            },
            key=KEY,
            machine=machine,
            resume=resume,
        )

    with sharded(opened, out, ranks, KEY) as shards:
        missing = [n for n, pair in enumerate(pairs) if not shards.mine.has(image=pair.name)]
        _count_pairs(counter, pairs, ranks.share(missing), reading, shards.mine, progress)
        shards.merge()
        run = shards.main or shards.mine
        rows = sorted(map(PhotoRow.of, run.records), key=lambda row: row.index)
        summary = PhotoSummary.of(rows)
        if shards.main is not None:
            run.finish(asdict(summary))
    return PhotoRun(tuple(rows), summary, run)


def _count_pairs(
    counter: Counter, pairs: Sequence[Pair], indices: Sequence[int], reading: Reading, run: Run,
    progress: Progress | None,
) -> None:  # fmt: skip
    """Count the pairs of photos at these indices, and add their rows to the run."""
    member = Member(counter)
    with frozen(counter), exact():
        for done, index in enumerate(indices):
            pair = pairs[index]
            if progress is not None:
                progress(done, len(indices), pair.name)
            before, after = (_count(member, path, reading) for path in pair.files)
            rate = metrics.error_rate([before], [after]).percent
            run.append(PhotoRow(index, pair.name, before, after, rate).json())
        if progress is not None:
            progress(len(indices), len(indices), "done")


def photo_table(summary: PhotoSummary, rows: Sequence[PhotoRow]) -> str:
    """Format the photos and their mean as aligned text, with notes below.

    >>> row = PhotoRow(0, "square", 20.0, 25.0, 25.0)
    >>> print(photo_table(PhotoSummary.of([row]), [row]))
    photo   clean count  attacked count  error rate %
    -------------------------------------------------
    square         20.0            25.0          25.0
    -------------------------------------------------
    mean           20.0            25.0          25.0
    photos: 1; error rate against the clean prediction
    """
    lines = [["photo", "clean count", "attacked count", "error rate %"]]
    lines += [
        [row.image, *map(people, (row.clean, row.count, row.error_rate))]
        for row in sorted(rows, key=lambda row: row.index)
    ]
    means = summary.mean_clean, summary.mean_count, summary.error_rate
    lines.append(["mean", *map(people, means)])
    text = aligned(lines, 1)
    rule = text[1]
    text = [*text[:-1], rule, text[-1]]
    text.append(f"photos: {summary.images}; error rate against the clean prediction")
    undefined = summary.error_rate_undefined
    if undefined:
        photos = "1 photo" if undefined == 1 else f"{undefined} photos"
        text.append(f"error rate undefined on {photos}: the clean prediction is 0")
    return "\n".join(text)


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


def _fingerprints(
    pairs: Sequence[Pair], reading: Reading, stride: int
) -> dict[str, dict[str, int | str]]:
    """Read every photo once, which alone shows whether its file is complete; their fingerprints."""
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
