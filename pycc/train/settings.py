"""The flags of the training command beside those of its plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pycc.data.outside import SHOW
from pycc.data.reading import Reading
from pycc.train import plan
from pycc.train.plan import flag

QUICK = {"limit": 24, "epochs": 3, "crops": 2, "warmup": 1, "decline": 1}
"""For the built-in scenes."""
MACHINE = (*plan.MACHINE, "device", "threads", "pictures", "tensorboard")
"""Settings that a run which is resumed need not keep."""


@dataclass(frozen=True)
class Settings(Reading):
    """What a training depends on besides its plan and how pictures are read; in its manifest."""

    data: str = flag(
        "synthetic", "folder of annotated images, or a built-in data set", metavar="DATA"
    )
    split: str = flag("train", "part that is trained on, and of which a share validates")
    limit: int | None = flag(None, "use the first images only")
    outside: str = flag(
        "keep", "what images show outside their region of interest", choices=list(SHOW)
    )
    on_error: str = flag("raise", "what to do with broken items", choices=["raise", "skip"])
    model: str | None = flag(None, "the counter; without it the weights tell, or mcnn")
    weights: str | None = flag(
        None, "weights to start from: a file, or built-in ones (default: fresh ones)"
    )
    option: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "an option of the counter; may be repeated"}
    )
    test_split: str | None = flag(
        None, "part that the best weights are measured on, once, after training"
    )
    test_data: str | None = flag(None, "its folder, where it is another", metavar="DATA")
    device: str = flag("cpu", "cpu or cuda[:N]")
    seed: int = flag(0, "key of all randomness")
    threads: int | None = flag(None, "threads (default: torch's)")
    pictures: bool | None = flag(None, "draw the curves of loss and validation")
    tensorboard: bool = flag(False, "write the curves for TensorBoard too")
