"""Mall (Chen et al., BMVC 2012), as published: the frames of one camera."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.io

from pycc.data.dataset import PairedFiles, Refuse, by_name, check_split, formats
from pycc.data.frames import Frame, pairs_of
from pycc.data.matlab import frames_of, read_variable
from pycc.data.pictures import pictures
from pycc.data.points import read_points
from pycc.data.target import Picture, Target, targets

_TRUTH = "mall_gt.mat"
_FRAMES, _TRAIN = 2000, 800


class Mall:
    """``frames/seq_000001.jpg`` to ``seq_002000.jpg``, with ``mall_gt.mat`` for all.

    ``frame{n}.loc`` holds the heads of frame n. The first 800 frames are ``train``, the others
    ``test``. All annotated heads count, as published: ``roi.mask`` in ``perspective_roi.mat`` is
    not applied. With another number of frames there is one split, opened for any requested one.
    """

    may_be_split = True

    def recognises(self, root: Path) -> bool:
        """Return whether ``root`` holds the frames and the annotation."""
        return (root / _TRUTH).is_file() and (root / "frames").is_dir()

    def splits(self, root: Path) -> tuple[str, ...]:
        """Return train and test, or all for another number of frames."""
        return ("train", "test") if len(_frames(root)) == _FRAMES else ("all",)

    def open(
        self, root: Path, *, split: str, refuse: Refuse, annotated: bool = True
    ) -> PairedFiles:
        """Pair up the frames of a split with their heads; ValueError naming a missing one."""
        root = root.resolve()
        name, chosen = root.name, _frames(root)
        images = by_name(pictures(root / "frames"))
        if len(chosen) == _FRAMES:
            check_split(root, split, self.splits(root))
            name = f"{name}/{split}"
            other = chosen[_TRAIN:] if split == "train" else chosen[:_TRAIN]
            chosen = chosen[:_TRAIN] if split == "train" else chosen[_TRAIN:]
            images = {key: images[key] for key in images.keys() - {each.name for each in other}}
        pairs = pairs_of(images, chosen if annotated else None, refuse)
        samples = PairedFiles(name, pairs, read_points)
        samples.format = "mall"
        return samples


def _frames(root: Path) -> list[Frame]:
    """Return the annotated frames in their order."""
    truth = root / _TRUTH
    heads = frames_of(truth, "frame", read_variable(truth, "frame"))
    return [
        Frame(f"seq_{number:06d}", truth, f"frame{{{number}}}.loc", points)
        for number, points in enumerate(heads, start=1)
    ]


def _write(path: Path, frames: Sequence[Picture]) -> None:
    cells = np.empty((1, len(frames)), object)
    for index, frame in enumerate(frames):
        cells[0, index] = {"loc": np.array(frame.points, np.float64).reshape(-1, 2)}
    counts = np.array([[float(len(frame.points))] for frame in frames])
    scipy.io.savemat(path, {"frame": cells, "count": counts}, do_compression=True)


formats.register("mall")(Mall())
targets.register("mall")(
    Target(
        "{split}",
        "frames/seq_{number:06d}",
        table="{split}/mall_gt.mat",
        write_table=_write,
        kept=frozenset((".jpg", ".png")),
    )
)
