"""WorldExpo'10 (Zhang et al., CVPR 2015), as published: frames of scenes with a region of interest.

Only heads inside their scene's region count; errors are reported for each of the five test scenes,
S1 to S5, and as their mean.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pycc.data.dataset import (
    PairedFiles,
    Refuse,
    by_name,
    formats,
    listing,
    pair_up,
)
from pycc.data.matlab import read_pairs, read_variable
from pycc.data.missing import Places
from pycc.data.pictures import pictures

TEST_SCENES = ("104207", "200608", "200702", "202201", "500717")
"""The test scenes, S1 to S5."""

_SPLITS = ("train", "test")
_SCENE = 6
"""Length of the scene at the start of a training frame's name."""
_REGION = "roi.mat"


class WorldExpo:
    """``train_frame/FRAME.jpg``, ``test_frame/SCENE/FRAME.jpg``, and ``{train,test}_label/SCENE``.

    A label folder holds ``FRAME.mat`` for each frame (``point_position``, which may be empty) and
    ``roi.mat``, the polygon of the samples' region of interest (see ``polygon``). The splits are
    ``train``, ``test`` (all five scenes), and each test scene by its name or as ``S1`` to ``S5``.
    Samples are ordered by scene, then numerically; the scenes are their groups.
    """

    def recognises(self, root: Path) -> bool:
        """Return whether ``root`` holds the frames of a split and the regions of its scenes."""
        return bool(self.splits(root))

    def splits(self, root: Path) -> tuple[str, ...]:
        """Return the existing ones of train and test."""
        existing = (name for name in _SPLITS if (root / f"{name}_frame").is_dir())
        return tuple(name for name in existing if any((root / f"{name}_label").glob("*/*.mat")))

    def open(
        self, root: Path, *, split: str, refuse: Refuse, annotated: bool = True
    ) -> PairedFiles:
        """Pair up one split; ValueError naming a missing file."""
        root = root.resolve()
        scenes = {f"S{number}": scene for number, scene in enumerate(TEST_SCENES, start=1)}
        split = scenes.get(split, split)
        known = self.splits(root)
        if split not in (*known, *(TEST_SCENES if "test" in known else ())):
            scenes_too = f", {', '.join(TEST_SCENES)} (or S1 to S5)" if "test" in known else ""
            raise ValueError(f"{root}: has splits {', '.join(known)}{scenes_too}, got {split!r}")
        if split == "train":
            frames, labels = _train_frames(root / "train_frame"), root / "train_label"
        else:
            wanted = TEST_SCENES if split == "test" else (split,)
            frames = {scene: pictures(root / "test_frame" / scene) for scene in wanted}
            labels = root / "test_label"
        pairs = []
        for scene, images in frames.items():
            annotations = by_name(_annotations(labels / scene)) if annotated else None
            region = labels / scene / _REGION
            places = Places([labels / scene], ["{name}.mat"])
            pairs += [
                replace(pair, region=region, group=scene)
                for pair in pair_up(by_name(images), annotations, refuse, places)
            ]
        return PairedFiles(f"{root.name}/{split}", pairs, read_points, region=read_region)


def _train_frames(folder: Path) -> dict[str, list[Path]]:
    """Return the frames by scene; a scene with annotation only has an empty list."""
    labels = folder.with_name("train_label")
    scenes = {path.name: list[Path]() for path in listing(labels) if path.is_dir()}
    for path in pictures(folder):
        scenes.setdefault(path.stem[:_SCENE], []).append(path)
    return dict(sorted(scenes.items()))


def _annotations(folder: Path) -> list[Path]:
    """List the annotation files; none if the folder is missing: then each frame is reported."""
    files = listing(folder) if folder.is_dir() else []
    return [path for path in files if path.suffix.lower() == ".mat" and path.name != _REGION]


def read_points(path: Path) -> NDArray[np.float64]:
    """Read points [N,2] (x, y) of a frame's .mat; N may be 0.

    ValueError naming a file without them.

    They are all annotated points, inside the region of interest or not.
    """
    return read_pairs(path, "point_position")


def read_region(path: Path, height: int, width: int) -> NDArray[np.bool_]:
    """Read the region of interest [H,W] of a scene from its ``roi.mat``.

    ValueError naming that file if it is missing, not a polygon, or covers no pixel.
    """
    x, y = (_coordinates(path, f"maskVertices{axis}Coordinates") for axis in "XY")
    if len(x) != len(y) or len(x) < 3:
        raise ValueError(f"{path}: expected three vertices or more, got {len(x)} x and {len(y)} y")
    region = polygon(np.stack((x, y), 1), height, width)
    if not region.any():
        raise ValueError(f"{path}: the region covers no pixel of {width} x {height}")
    return region


def _coordinates(path: Path, name: str) -> NDArray[np.float64]:
    values = read_variable(path, name)
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iuf":
        raise ValueError(f"{path}: {name} must be numbers")
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: {name} must be finite, got NaN or infinity")
    return values.ravel().astype(np.float64)


def polygon(vertices: NDArray[np.float64], height: int, width: int) -> NDArray[np.bool_]:
    """Return the pixels [H,W] whose centre lies in a polygon of vertices [V,2] (x, y).

    The centre of pixel (row, column) is x = column + 1/2, y = row + 1/2. A centre is inside if a
    ray from it crosses the border an odd number of times. The last vertex is joined to the first;
    parts outside the image are cut off.
    """
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    inside = np.zeros((height, width), np.bool_)
    for (x0, y0), (x1, y1) in zip(vertices, np.roll(vertices, -1, axis=0), strict=True):
        crossed = (y0 > rows) != (y1 > rows)
        crossing = x0 + (rows[crossed] - y0) * (x1 - x0) / (y1 - y0 or 1.0)
        inside[crossed] ^= columns < crossing[:, None]
    return inside


formats.register("worldexpo")(WorldExpo())
