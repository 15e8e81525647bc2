"""NWPU-Crowd (Wang et al., TPAMI 2021), as published."""

from __future__ import annotations

from collections.abc import Container, Iterable
from pathlib import Path

from pycc.data.dataset import (
    NotAnnotatedError,
    PairedFiles,
    Refuse,
    by_name,
    check_split,
    formats,
    listing,
    pair_up,
    read_bytes,
)
from pycc.data.missing import Places
from pycc.data.pictures import pictures
from pycc.data.points import read_points

_SPLITS = ("train", "val", "test")


class NWPUCrowd:
    """``images/0001.jpg`` with ``jsons/0001.json`` (``points``, [x, y] each; possibly empty).

    ``train.txt``, ``val.txt`` and ``test.txt`` beside them list the images of a split: one name per
    line, in its first column. Samples are in numeric order. The annotation of the test set is not
    published.
    """

    def recognises(self, root: Path) -> bool:
        """Return whether ``root`` holds the two folders, and a list of images in one of them.

        Other tools have folders of these names too, with lists of paths.
        """
        folders = [root / name for name in ("images", "jsons")]
        lists = [root / f"{split}.txt" for split in self.splits(root)]
        if not lists or not all(folder.is_dir() for folder in folders):
            return False
        there = {path.stem for folder in folders for path in listing(folder)}
        return any(not there.isdisjoint(_first_column(table)) for table in lists)

    def splits(self, root: Path) -> tuple[str, ...]:
        """Return the splits that have a list."""
        return tuple(name for name in _SPLITS if (root / f"{name}.txt").is_file())

    def open(
        self, root: Path, *, split: str, refuse: Refuse, annotated: bool = True
    ) -> PairedFiles:
        """Pair up one split; ValueError naming a missing file.

        NotAnnotatedError for the published test set, unless ``annotated`` is False.
        """
        root = root.resolve()
        check_split(root, split, self.splits(root))
        table = root / f"{split}.txt"
        names = _listed(table)
        images = _of(names, pictures(root / "images"))
        annotations = None
        if annotated:
            files = listing(root / "jsons")
            annotations = _of(names, (path for path in files if path.suffix.lower() == ".json"))
        if split == "test" and annotations == {}:
            raise NotAnnotatedError(
                f"{table}: none of its images has an annotation in jsons: that of the test set is "
                "not published; train and val have theirs; to count or attack its images alone "
                "use annotated=False (--unannotated)"
            )
        lacks = "neither image nor annotation" if annotated else "no image"
        for name, line in names.items():
            if name not in images and name not in (annotations or {}):
                refuse(f"{table}: line {line}: {name!r} has {lacks}")
        pairs = pair_up(images, annotations, refuse, Places([root / "jsons"], ["{name}.json"]))
        return PairedFiles(f"{root.name}/{split}", pairs, read_points)


def _of(names: Container[str], files: Iterable[Path]) -> dict[str, list[Path]]:
    """Return the files with these names, by name."""
    return {name: paths for name, paths in by_name(list(files)).items() if name in names}


def _first_column(path: Path) -> list[str]:
    """Return the readable names in a list; ``_listed`` reports what is wrong with it."""
    text = read_bytes(path).decode("utf-8-sig", "replace")
    return [name for line in text.splitlines() for name in line.split()[:1]]


def _listed(path: Path) -> dict[str, int]:
    """Return the names in the first column of a split's list, each with its line."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text: {error.reason}") from error
    names: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        for name in line.split()[:1]:
            if name in names:
                raise ValueError(f"{path}: line {number}: {name!r} is in line {names[name]} too")
            names[name] = number
    if not names:
        raise ValueError(f"{path}: lists no image")
    return names


formats.register("nwpu")(NWPUCrowd())
