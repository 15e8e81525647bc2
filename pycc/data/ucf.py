"""UCF_CC_50 (Idrees et al., CVPR 2013) and UCF-QNRF (Idrees et al., ECCV 2018), as published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pycc.data.dataset import (
    Pair,
    PairedFiles,
    Refuse,
    by_name,
    check_split,
    formats,
    listing,
    pair_up,
)
from pycc.data.matlab import read_pairs
from pycc.data.missing import Places
from pycc.data.pictures import pictures

_ENDING = "_ann"
_FOLDS = 5
_CC_50_IMAGES = 50
_QNRF = {"train": "Train", "test": "Test"}


class UCFCC50:
    """``n.jpg`` beside ``n_ann.mat``, n = 1 to 50.

    There is no official split. Published results are means over five folds of ten images in file
    order. The splits ``test1`` to ``test5`` are the folds, ``train1`` to ``train5`` their other
    forty images; ``all`` is every image.
    """

    def recognises(self, root: Path) -> bool:
        """Return whether ``root`` holds annotations of this kind, and no image of UCF-QNRF."""
        return _annotated(root) and not any(root.glob("img_*"))

    def splits(self, root: Path) -> tuple[str, ...]:
        """Return ``all``, since the folds share images."""
        return ("all",)

    def open(
        self, root: Path, *, split: str, refuse: Refuse, annotated: bool = True
    ) -> PairedFiles:
        """Pair up one split, in numeric order."""
        pairs = _pairs(root, refuse, annotated)
        name = root.resolve().name
        if split == "all":
            return PairedFiles(name, pairs, read_points)
        kind, fold = split[:-1], split[-1:]
        if kind not in ("test", "train") or fold not in map(str, range(1, _FOLDS + 1)):
            raise ValueError(
                f"{root}: has splits all, test1 to test{_FOLDS} and train1 to train{_FOLDS} (five "
                f"folds of ten in file order), got {split!r}"
            )
        # By name, so that a broken item does not move others to another fold.
        side = _CC_50_IMAGES // _FOLDS
        tenth = {str(n) for n in range(side * (int(fold) - 1) + 1, side * int(fold) + 1)}
        chosen = [pair for pair in pairs if (pair.name in tenth) == (kind == "test")]
        return PairedFiles(f"{name}/{split}", chosen, read_points)


class UCFQNRF:
    """``Train`` and ``Test`` with ``img_0001.jpg`` beside ``img_0001_ann.mat``.

    The folder may be that of one split; it is then opened for any requested split. Images are not
    resized; published work limits their longer side.
    """

    def recognises(self, root: Path) -> bool:
        """Return whether ``root`` is the data set or one of its splits."""
        splits = [root / name for name in _QNRF.values()]
        return any(map(_annotated, splits)) or (_annotated(root) and any(root.glob("img_*")))

    def splits(self, root: Path) -> tuple[str, ...]:
        """Return the existing ones of train and test."""
        if _annotated(root):
            return ("all",)
        return tuple(name for name, folder in _QNRF.items() if _annotated(root / folder))

    def open(
        self, root: Path, *, split: str, refuse: Refuse, annotated: bool = True
    ) -> PairedFiles:
        """Pair up one split, in numeric order."""
        root = root.resolve()
        folder = root
        if not _annotated(root):
            check_split(root, split, [name for name, f in _QNRF.items() if (root / f).is_dir()])
            folder = root / _QNRF[split]
        pairs = _pairs(folder, refuse, annotated)
        return PairedFiles(f"{folder.parent.name}/{folder.name}", pairs, read_points)


def _annotated(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob(f"*{_ENDING}.mat"))


def _pairs(folder: Path, refuse: Refuse, annotated: bool) -> list[Pair]:
    images = pictures(folder, published=f"*{_ENDING}.*")  # drawings and plots of the heads
    annotations: dict[str, list[Path]] = {}
    for path in listing(folder):
        if path.suffix.lower() == ".mat":
            annotations.setdefault(path.stem.removesuffix(_ENDING), []).append(path)
    places = Places([folder], [f"{{name}}{_ENDING}.mat"])
    return pair_up(by_name(images), annotations if annotated else None, refuse, places)


def read_points(path: Path) -> NDArray[np.float64]:
    """Read points [N,2] (x, y) from ``annPoints`` of a .mat.

    ValueError naming a file without it.
    """
    return read_pairs(path, "annPoints")


formats.register("ucf_cc_50")(UCFCC50())
formats.register("ucf_qnrf")(UCFQNRF())
