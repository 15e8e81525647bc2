"""UCSD pedestrians (Chan et al., CVPR 2008), as published: frames of one camera.

Only heads inside the region of interest, the main walkway, count.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pycc.data.dataset import PairedFiles, Refuse, by_name, check_split, formats, listing
from pycc.data.frames import Frame, pairs_of
from pycc.data.matlab import frames_of, read_variable
from pycc.data.pictures import pictures
from pycc.data.points import read_points

_LABELS = ("vidf-cvpr", "gt/vidf", ".")
_VIDEOS = ("ucsdpeds/vidf", "video/vidf", "vidf", ".")
_ENDING = "_frame_full.mat"
_REGION = "vidf1_33_roi_mainwalkway.mat"
_TRAIN = tuple(f"vidf1_33_{number:03d}" for number in range(3, 7))
_TEST = tuple(f"vidf1_33_{number:03d}" for number in (0, 1, 2, 7, 8, 9))


class UCSD:
    """Clips ``vidf1_33_000.y`` with frames ``vidf1_33_000_f001.png``, and ``vidf-cvpr`` for heads.

    ``vidf1_33_000_frame_full.mat`` holds the heads of a clip's 200 frames, as ``frame{n}.loc`` or
    ``fgt.frame{n}.loc``, and ``vidf1_33_roi_mainwalkway.mat`` the region of interest. Clips 003 to
    006 (frames 601 to 1400) are ``train``, the other six of the first ten ``test``; further clips
    are not part of the published experiment and are not read.
    """

    def recognises(self, root: Path) -> bool:
        """Return whether ``root`` holds the annotation of clips, in one of its usual places."""
        return _labels(root) is not None and _videos(root) is not None

    def splits(self, root: Path) -> tuple[str, ...]:
        """Return the existing ones of train and test."""
        clips = _clips(root)
        splits = (("train", _TRAIN), ("test", _TEST))
        return tuple(name for name, wanted in splits if not clips.keys().isdisjoint(wanted))

    def open(
        self, root: Path, *, split: str, refuse: Refuse, annotated: bool = True
    ) -> PairedFiles:
        """Pair up the frames of a split with their heads; ValueError naming a missing one."""
        root = root.resolve()
        check_split(root, split, self.splits(root))
        clips, folder = _clips(root), _labels(root) or root
        images, frames = {}, []
        for clip in sorted(clips.keys() & set(_TRAIN if split == "train" else _TEST)):
            images.update(by_name(pictures(clips[clip])))
            if annotated:
                frames += _frames(folder / f"{clip}{_ENDING}", clip)
        region = folder / _REGION
        if not region.is_file():
            raise ValueError(f"{region}: no such file: it is the region in which heads count")
        pairs = pairs_of(images, frames if annotated else None, refuse)
        pairs = [replace(pair, region=region, points=pair.points) for pair in pairs]
        return PairedFiles(f"{root.name}/{split}", pairs, read_points, region=read_region)


def _labels(root: Path) -> Path | None:
    """Return the folder of the annotations."""
    folders = (root / place for place in _LABELS)
    return next((path for path in folders if any(path.glob(f"vidf*{_ENDING}"))), None)


def _videos(root: Path) -> Path | None:
    """Return the folder of the clips."""
    folders = (root / place for place in _VIDEOS)
    return next((path for path in folders if any(path.glob("vidf*.y"))), None)


def _clips(root: Path) -> dict[str, Path]:
    """Return the folders of the clips by name."""
    videos = _videos(root)
    inside = listing(videos) if videos is not None else []
    return {path.stem: path for path in inside if path.suffix == ".y" and path.is_dir()}


def _frames(path: Path, clip: str) -> list[Frame]:
    """Return the annotated frames of a clip."""
    name, value = "frame", read_variable(path, "frame")
    if value is None:
        name, outer = "fgt.frame", read_variable(path, "fgt")
        try:
            value = outer["frame"].ravel()[0]
        except (TypeError, IndexError, ValueError, AttributeError):
            raise ValueError(f"{path}: expected frame or fgt.frame") from None
    return [
        Frame(f"{clip}_f{number:03d}", path, f"{name}{{{number}}}.loc", _two_columns(heads))
        for number, heads in enumerate(frames_of(path, name, value), start=1)
    ]


def _two_columns(heads: object) -> object:
    """Leave out the third column, which is no coordinate."""
    wide = isinstance(heads, np.ndarray) and heads.ndim == 2 and heads.shape[1] == 3
    return heads[:, :2] if wide and isinstance(heads, np.ndarray) else heads


def read_region(path: Path, height: int, width: int) -> NDArray[np.bool_]:
    """Read the region of interest [H,W], ``roi.mask``; ValueError naming the file."""
    roi = read_variable(path, "roi")
    try:
        mask = np.asarray(roi["mask"].ravel()[0])
    except (TypeError, IndexError, ValueError, AttributeError):
        raise ValueError(f"{path}: expected roi.mask") from None
    if mask.shape != (height, width) or mask.dtype.kind not in "biuf":
        got = " x ".join(map(str, mask.shape))
        raise ValueError(f"{path}: roi.mask must be {height} x {width} numbers, got {got}")
    if not mask.any():
        raise ValueError(f"{path}: the region covers no pixel")
    return mask.astype(np.bool_)


formats.register("ucsd")(UCSD())
