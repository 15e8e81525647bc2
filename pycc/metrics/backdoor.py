"""Measures of backdoored counters: of each counter, and of an experiment as a whole.

A counter is the clean one or one with a backdoor, as trained or after a defense; it is measured on
clean images and on the same images with the trigger. The shares are those of ``rates``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np

from pycc.metrics.counts import mae, rmse
from pycc.metrics.rates import accuracy, bands, ratios, success
from pycc.metrics.shares import Difference, Share

__all__ = [
    "BACKDOORED",
    "CLEAN",
    "CLEAN_MODEL",
    "TRIGGERED",
    "BackdoorMetrics",
    "BackdoorSummary",
    "Certified",
    "Detection",
    "Images",
    "Model",
    "Row",
    "row",
]

Model = Literal["clean", "backdoored"]
Images = Literal["clean", "triggered"]
CLEAN_MODEL: Final = "clean"
BACKDOORED: Final = "backdoored"
CLEAN: Final = "clean"
TRIGGERED: Final = "triggered"


@dataclass(frozen=True)
class Row:
    """The measures of one counter on one set of images, as :func:`row` computes them.

    >>> row([31.5, 10.5], [10, 10]).accuracy.value
    0.5
    """

    images: int
    without_heads: int
    """Images whose truth is 0: part of the errors, of no share."""
    headless_count: float | None
    """Mean count of these, in people."""
    negative: int
    """Images with a count below 0, which shares treat as lowered to 0."""
    mae: float
    rmse: float
    mean_ratio: float | None
    """Mean of r over images with heads; 1 for a perfect counter."""
    accuracy: Share
    success: Share | None
    """Attack success rate against the true count; None if no strategy gives a direction."""
    bands: tuple[Share, Share, Share, Share | None] | None
    target_success: Share | None
    """The share of images counted within a tenth of the altered target; None without targets."""


def row(
    counts: Sequence[float],
    truth: Sequence[int],
    *,
    raises: bool | None = None,
    target: Sequence[int] | None = None,
) -> Row:
    """Compute the measures of predicted counts against true ones.

    Args:
        counts: [N] predicted counts, in people.
        truth: [N] true counts.
        raises: whether the attack raises counts; None without an attack.
        target: [N] counts that the attack aims at.

    Raises:
        ValueError: no images, and as of ``ratios``.

    Example:
        >>> measures = row([31.5, 10.5], [10, 10], raises=True, target=[30, 30])
        >>> measures.success.value, measures.target_success.value, measures.mae
        (0.5, 0.5, 11.0)
    """
    r = ratios(counts, truth)
    headless = r.headless
    return Row(
        images=len(counts),
        without_heads=len(headless),
        headless_count=float(headless.mean()) if len(headless) else None,
        negative=int((np.asarray(counts, np.float64) < 0).sum()),
        mae=mae(truth, counts),
        rmse=rmse(truth, counts),
        mean_ratio=float(r.values.mean()) if len(r.values) else None,
        accuracy=accuracy(r),
        success=None if raises is None else success(r, raises),
        bands=None if raises is None else bands(r, raises),
        target_success=None if target is None else accuracy(ratios(counts, target)),
    )


@dataclass(frozen=True)
class Certified:
    """The certified intervals of the counts of one set of images.

    >>> from pycc.metrics import share
    >>> Certified(width=12.0, unbounded=0, accuracy=share([True, False])).accuracy.value
    0.5
    """

    width: float | None
    """Mean width of the bounded intervals, in people; None if there are none."""
    unbounded: int
    """Number of intervals without an upper end."""
    accuracy: Share
    """Images whose interval lies within a tenth of the truth as a whole."""


@dataclass(frozen=True)
class BackdoorMetrics:
    """The measures of one counter on clean and on triggered images, with the chance levels.

    >>> clean = row([10.5], [10], raises=True)
    >>> metrics = BackdoorMetrics(
    ...     strategy="add", model="backdoored", defense=None, raises=True, clean=clean,
    ...     triggered=row([30.0], [10], raises=True), certified=None, chance_clean_model=None,
    ...     chance_no_trigger=clean.success, excess=None, left=None,
    ... )
    >>> metrics.triggered.success.value, metrics.chance_no_trigger.value
    (1.0, 0.0)
    """

    strategy: str | None
    """The strategy of the attack; None for the clean model."""
    model: str
    """``clean`` or ``backdoored``: the counter before any defense."""
    defense: str | None
    raises: bool | None
    """Whether the strategy raises counts; None without a strategy."""
    clean: Row | None
    """On images without the trigger; None without results."""
    triggered: Row | None
    """On images with the trigger."""
    certified: Mapping[str, Certified] | None
    """By images, ``clean`` and ``triggered``; None unless every image has a certified interval."""
    chance_clean_model: Share | None
    """rho_Asr of the clean, undefended model on triggered images; None if it was not measured."""
    chance_no_trigger: Share | None
    """rho_Asr of this counter on images without the trigger."""
    excess: Difference | None
    """rho_Asr on triggered images minus the larger chance level, over the images that all have."""
    left: Difference | None
    """rho_Asr on triggered images minus the smaller chance level."""

    def on(self, images: Images) -> Row | None:
        """The row of the clean or the triggered images."""
        return self.clean if images == CLEAN else self.triggered


@dataclass(frozen=True)
class Detection:
    """The quality of one detector of triggered images.

    >>> from pycc.metrics import share
    >>> none, every = share([False, False]), share([True, True])
    >>> Detection("add", "backdoored", "detector", 1.0, 2.0, none, every).detected.value
    1.0
    """

    strategy: str | None
    model: str
    defense: str | None
    """The detector's name."""
    auc: float
    """Area under the ROC curve."""
    threshold: float
    """The detector's own threshold; it flags images with a score above it."""
    false_alarms: Share
    """Clean images that are flagged."""
    detected: Share
    """Triggered images that are flagged."""


@dataclass(frozen=True)
class BackdoorSummary:
    """All measures of an experiment, as ``pycc.backdoor.summarise`` computes them.

    >>> BackdoorSummary([], []).json()
    {'rows': [], 'detections': []}
    """

    rows: Sequence[BackdoorMetrics]
    """One for each strategy, model and defense, in the paper's order."""
    detections: Sequence[Detection]
    """One for each strategy, model and detector."""

    def json(self) -> dict[str, Any]:
        """Return it as a JSON object, as ``summary.json`` holds it."""
        return {"rows": [asdict(metrics) for metrics in self.rows],
                "detections": [asdict(detection) for detection in self.detections]}  # fmt: skip
