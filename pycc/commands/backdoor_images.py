"""The groups of flags of the backdoor commands that choose images."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pycc.backdoor.defenses.finetuning import clean_images
from pycc.commands.checks import check_beside, check_least, check_share
from pycc.commands.flags import FolderFlags
from pycc.commands.scenes import SYNTHETIC
from pycc.data.dataset import Dataset
from pycc.data.dataset import builtin as builtin_data
from pycc.data.scaled import Scaled
from pycc.settings import flag
from pycc.types import Sample


@dataclass(frozen=True)
class ImageFlags(FolderFlags):
    """Annotated images, and how they are read."""

    data: str = flag(
        SYNTHETIC, "folder of annotated images (the paper's: ShanghaiTech B), or a built-in data "
        "set", metavar="FOLDER", names=builtin_data.names,
    )  # fmt: skip
    scale: float = flag(1.0, "resize all images by this factor", advanced=True)
    scene: str | None = flag(None, "size of built-in scenes (default: theirs)", metavar="HxW")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scene is not None:
            _size(self.scene)
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"--scale must be above 0 and finite, got {self.scale:g}")

    def check_scene(self, *folders: str | None) -> None:
        """ValueError for a size of scenes if none of the data sets are scenes."""
        if self.scene is not None and SYNTHETIC not in (self.data, *folders):
            raise ValueError("--scene: only built-in scenes have a variable size; see --scale")

    def opened(self, folder: str, split: str, limit: int | None = None, **options: Any) -> Dataset:
        """Open images as ``FolderFlags`` does, resized."""
        if folder == SYNTHETIC:
            # Scenes are drawn, not stored: there are as many as needed.
            options["count"] = max(100, limit or 0)
            if self.scene is not None:
                options["shape"] = _size(self.scene)
        samples = super().opened(folder, split, limit, **options)
        return samples if self.scale == 1.0 else Scaled(samples, self.scale)


@dataclass(frozen=True)
class TrainingImages(ImageFlags):
    """The images that a counter is trained on."""

    split: str = flag("train", "part that is trained on, and poisoned")
    max_images: int | None = flag(None, "use the first training images only")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least("max_images", self.max_images, 1)

    def training(self) -> Dataset:
        """The images that are trained on, and poisoned."""
        return self.opened(self.data, self.split, self.max_images)


@dataclass(frozen=True)
class AllImages(TrainingImages):
    """The images that a counter is trained on, and those that it is tested on."""

    test_split: str = flag("test", "part that is tested on, clean and with the trigger")
    test_data: str | None = flag(
        None, "folder of the test images (default: --data)", metavar="FOLDER",
        names=builtin_data.names,
    )  # fmt: skip
    max_test_images: int | None = flag(None, "use the first test images only")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least("max_test_images", self.max_test_images, 1)

    def tested(self) -> Dataset:
        """The images that are tested on."""
        return self.opened(self.test_data or self.data, self.test_split, self.max_test_images)


@dataclass(frozen=True)
class TestImages(ImageFlags):
    """The images that counters are tested on."""

    split: str = flag("test", "part that is tested on, clean and with the trigger")
    max_images: int | None = flag(None, "use the first images only")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least("max_images", self.max_images, 1)

    def tested(self) -> Dataset:
        """The images that are tested on."""
        return self.opened(self.data, self.split, self.max_images)


@dataclass(frozen=True)
class ExtraFlags:
    """A second data set that defenses learn from."""

    extra_data: str | None = flag(
        None, "second data set; defenses also learn from its clean images", metavar="FOLDER",
        names=builtin_data.names,
    )  # fmt: skip
    extra_split: str = flag("train", "part of the second data set", advanced=True)
    max_extra_images: int | None = flag(
        None, "use the first images of the second data set only", advanced=True
    )
    extra_fraction: float = flag(
        0.1, "number of its images, as a share of the training images", advanced=True
    )

    def __post_init__(self) -> None:
        check_least("max_extra_images", self.max_extra_images, 1)
        check_share("extra_fraction", self.extra_fraction)

    def check(self, given: Collection[str]) -> None:
        """ValueError for flags without effect."""
        names = ("extra_fraction", "max_extra_images", "extra_split")
        check_beside(given, names, "--extra-data", self.extra_data is not None)

    def clean(self, images: TrainingImages, training: Dataset, seed: int) -> Sequence[Sample]:
        """The clean images that defenses learn from."""
        other = None
        if self.extra_data is not None:
            other = images.opened(self.extra_data, self.extra_split, self.max_extra_images)
        return clean_images(training, other, fraction=self.extra_fraction, seed=seed)


def _size(text: str) -> tuple[int, int]:
    height, cross, width = text.partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise ValueError(f"--scene must be HxW pixels, got {text!r}")
    return int(height), int(width)
