"""The summary of an experiment: every counter's measures beside what chance alone would give.

Shares alone say little: of clean predictions of clean counters every third is off by more than a
tenth. So every attack success rate stands beside two chance levels, what the clean counter does on
the same triggered images and what the counter itself does on the images without trigger. That a
backdoor works is its excess over the larger level; that it is gone is what is left over the lesser
one, since a defense that makes the counter err to the attack's side raises a level, too. One that
makes it err to the other side lowers all: what is left says something beside ρ_Acc alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pycc.backdoor.evaluation.measures import (
    BACKDOORED,
    CLEAN,
    CLEAN_MODEL,
    KEY,
    TRIGGERED,
    Row,
    row,
)
from pycc.metrics.rates import (
    Difference,
    Roc,
    Share,
    accurate,
    difference,
    ratios,
    roc,
    share,
    succeeded,
)  # fmt: skip
from pycc.runs import Record

_FIRST = ("add", "minus", "multiply", "divide", "fine-tuning")
"""The paper's order of strategies, and its defense; others follow by name."""

Condition = tuple[str | None, str, str | None]
"""Strategy, model, defense."""
_REFERENCE: Condition = (None, CLEAN_MODEL, None)
"""The clean, undefended model: on triggered images, the first chance level of every strategy."""


@dataclass(frozen=True)
class Certified:
    """What certified intervals on the counts of one set of images show."""

    width: float | None
    """Mean of the bounded ones, in people; None if there are none."""
    unbounded: int
    """Intervals without an upper end."""
    accuracy: Share
    """Images whose whole interval lies within a tenth of the truth."""


@dataclass(frozen=True)
class BackdoorMetrics:
    """What one counter does on clean and on triggered images, beside what chance alone gives.

    >>> from pycc.backdoor.evaluation.measures import record
    >>> common = {"strategy": "add", "model": "backdoored", "defense": None, "raises": True}
    >>> (metrics,) = metrics_of([
    ...     record(**common, images=images, index=0, name="a", truth=10, count=count)
    ...     for images, count in (("clean", 10.5), ("triggered", 30.0))
    ... ])
    >>> metrics.triggered.success.value, metrics.chance_no_trigger.value, metrics.excess
    (1.0, 0.0, None)
    """

    strategy: str | None
    """The attack's; None for the clean model."""
    model: str
    """``clean`` or ``backdoored``: the counter before any defense."""
    defense: str | None
    raises: bool | None
    """Whether the strategy raises counts; None without a strategy."""
    clean: Row | None
    """On images without the trigger; None without results."""
    triggered: Row | None
    """On images with the trigger."""
    certified: dict[str, Certified] | None
    """By images, ``clean`` and ``triggered``; None unless every image has a certified interval."""
    chance_clean_model: Share | None
    """rho_Asr of the clean, undefended model on triggered images; None if it was not measured."""
    chance_no_trigger: Share | None
    """rho_Asr of this counter on images without the trigger."""
    excess: Difference | None
    """rho_Asr on triggered images less the larger chance level, over the images that all have."""
    left: Difference | None
    """rho_Asr on triggered images less the smaller chance level."""


def metrics_of(records: Iterable[Record]) -> list[BackdoorMetrics]:
    """The metrics of every strategy, model and defense, in the paper's order.

    ``excess`` and ``left`` have the lesser (``left``: the larger) ends of the 95 % intervals of
    both differences, Newcombe's for pairs: an interval that leans to the side of the value, and not
    one of 95 % for the larger or lesser of two levels that are themselves estimated. ValueError as
    of ``summarise``.
    """
    counted, _ = _grouped(records)
    directions = _directions(counted)
    reference = counted.get(_REFERENCE, {}).get(TRIGGERED)
    return [
        _metrics(condition, counted[condition], reference, directions.get(condition[0]))
        for condition in sorted(counted, key=_order)
    ]


def summarise(records: Iterable[Record]) -> Record:
    """All measures of an experiment: the same JSON value for the same results in any order.

    ``rows`` has one entry for each strategy, model and defense: ``BackdoorMetrics`` as a JSON
    object. ``detections`` has one entry for each strategy, model and detector: area under the ROC
    curve (``auc``), and the shares of clean images flagged (``false_alarms``) and of triggered ones
    (``detected``) at the detector's own ``threshold``.

    ValueError for two results of one key, a strategy that goes both ways, an image with two truths,
    and a detector with two thresholds.

    >>> summarise([])
    {'rows': [], 'detections': []}
    """
    records = list(records)
    _, scored = _grouped(records)
    detections = [
        {"strategy": condition[0], "model": condition[1], "defense": condition[2],
         "auc": curve.auc, **_flagged(condition, scored[condition])}
        for condition, curve in _curves(scored)
    ]  # fmt: skip
    return {"rows": [asdict(metrics) for metrics in metrics_of(records)], "detections": detections}


def curves(records: Iterable[Record]) -> dict[str, Roc]:
    """ROC curves of the detectors' scores, named by detector and strategy, for pictures.

    >>> from pycc.backdoor.evaluation.measures import record
    >>> common = {"strategy": "add", "model": "backdoored", "defense": "detector", "raises": True}
    >>> results = [
    ...     record(**common, images=images, index=0, name="a", score=score, threshold=2.0)
    ...     for images, score in (("clean", 1.0), ("triggered", 3.0))
    ... ]
    >>> {name: curve.auc for name, curve in curves(results).items()}
    {'detector, add': 1.0}
    """
    _, scored = _grouped(records)
    return {f"{defense or model}, {strategy or 'no strategy'}": curve
            for (strategy, model, defense), curve in _curves(scored)}  # fmt: skip


def distributions(
    records: Iterable[Record], defenses: Sequence[str | None] = (None,)
) -> dict[tuple[str, str], dict[str, NDArray[np.float64]]]:
    """Ratios r [M] for a picture of densities: panels by row and column, in each the strategies.

    The rows are clean and triggered images, the columns the ``defenses`` of the backdoored model
    (None: as it was trained). The clean model, where measured, stands in each panel under the name
    "clean model". Panels without results are left out.

    >>> from pycc.backdoor.evaluation.measures import record
    >>> result = record(
    ...     strategy="add", model="backdoored", defense=None, images="triggered", index=0, name="a",
    ...     truth=10, count=30.0, raises=True,
    ... )  # fmt: skip
    >>> {place: ratios["add"].tolist() for place, ratios in distributions([result]).items()}
    {('triggered images', 'backdoored'): [3.0]}
    """
    counted, _ = _grouped(records)
    panels: dict[tuple[str, str], dict[str, NDArray[np.float64]]] = {}
    for images in (CLEAN, TRIGGERED):
        for defense in defenses:
            found = {}
            plain = counted.get(_REFERENCE, {}).get(images)
            lines = [] if plain is None else [("clean model", plain)]
            lines += [
                (str(condition[0]), counted[condition][images])
                for condition in sorted(counted, key=_order)
                if condition[1:] == (BACKDOORED, defense) and images in counted[condition]
            ]
            for label, group in lines:
                values = ratios(*_columns(group, "count", "truth")).values
                if len(values):
                    found[label] = values
            if any(label != "clean model" for label in found):
                panels[f"{images} images", defense or BACKDOORED] = found
    return panels


_Groups = dict[Condition, dict[str, dict[int, Record]]]


def _grouped(records: Iterable[Record]) -> tuple[_Groups, _Groups]:
    """Counts and scores by condition, images and index, in the order of the index."""
    counted: _Groups = {}
    scored: _Groups = {}
    truths: dict[int, int] = {}
    for one in sorted(records, key=lambda r: int(r["index"])):
        condition = (one["strategy"], one["model"], one["defense"])
        groups = scored if "score" in one else counted
        group = groups.setdefault(condition, {}).setdefault(one["images"], {})
        index = int(one["index"])
        if index in group:
            raise ValueError(
                f"summarise: results must differ in {', '.join(KEY)}, got two of "
                f"{[one[field] for field in KEY]}"
            )
        group[index] = one
        if "truth" in one and truths.setdefault(index, one["truth"]) != one["truth"]:
            raise ValueError(
                f"summarise: image {index} must have one truth, "
                f"got {truths[index]} and {one['truth']}"
            )
    return counted, scored


def _directions(groups: _Groups) -> dict[str | None, bool]:
    found: dict[str | None, bool] = {}
    for (strategy, _, _), sets in groups.items():
        for one in (one for group in sets.values() for one in group.values()):
            if one["raises"] is None:
                continue
            if found.setdefault(strategy, one["raises"]) != one["raises"]:
                raise ValueError(f"summarise: {strategy} must raise or lower counts, got both")
    return found


def _order(condition: Condition) -> tuple[Any, ...]:
    def place(name: str | None) -> tuple[int, str]:
        if name is None:
            return -1, ""
        return (_FIRST.index(name) if name in _FIRST else len(_FIRST)), name

    strategy, model, defense = condition
    return place(strategy), model != CLEAN_MODEL, place(defense)


def _columns(group: Mapping[int, Record], *names: str) -> list[list[Any]]:
    return [[one[name] for one in group.values()] for name in names]


def _metrics(
    condition: Condition,
    sets: Mapping[str, Mapping[int, Record]],
    reference: Mapping[int, Record] | None,
    raises: bool | None,
) -> BackdoorMetrics:
    clean_model, no_trigger, excess, left = _chance(sets, reference, raises)
    return BackdoorMetrics(
        *condition,
        raises=raises,
        clean=_row(sets.get(CLEAN), raises),
        triggered=_row(sets.get(TRIGGERED), raises),
        certified=_certified(sets),
        chance_clean_model=clean_model,
        chance_no_trigger=no_trigger,
        excess=excess,
        left=left,
    )


def _row(group: Mapping[int, Record] | None, raises: bool | None) -> Row | None:
    if not group:
        return None
    counts, truth, target = _columns(group, "count", "truth", "target")
    targets = None if any(value is None for value in target) else target
    return row(counts, truth, raises=raises, target=targets)


def _hits(group: Mapping[int, Record], raises: bool) -> dict[int, bool]:
    """Whether the attack succeeds, by index of the images with heads."""
    with_heads = {index: one for index, one in group.items() if one["truth"] > 0}
    found = succeeded(ratios(*_columns(with_heads, "count", "truth")), raises)
    return dict(zip(with_heads, found.tolist(), strict=True))


def _chance(
    sets: Mapping[str, Mapping[int, Record]],
    reference: Mapping[int, Record] | None,
    raises: bool | None,
) -> tuple[Share | None, Share | None, Difference | None, Difference | None]:
    """Both chance levels, of the clean model and without trigger; the excess, and what is left."""
    if raises is None:
        return None, None, None, None
    levels = [None if not group else _hits(group, raises) for group in (reference, sets.get(CLEAN))]
    clean_model, no_trigger = (
        None if hits is None else share(list(hits.values())) for hits in levels
    )
    triggered = _hits(sets.get(TRIGGERED, {}), raises)
    known = [hits for hits in levels if hits is not None]
    common = [index for index in triggered if all(index in hits for hits in known)]
    if len(known) < len(levels) or not common:
        return clean_model, no_trigger, None, None
    attacked = [triggered[index] for index in common]
    both = [difference(attacked, [hits[index] for index in common]) for hits in known]
    # Over the larger level it is the lesser difference.
    excess, left = (
        Difference(
            end(one.value for one in both), end(one.low for one in both),
            end(one.high for one in both), len(common),
        )
        for end in (min, max)
    )  # fmt: skip
    return clean_model, no_trigger, excess, left


def _certified(sets: Mapping[str, Mapping[int, Record]]) -> dict[str, Certified] | None:
    """The certified intervals by images; None unless every image has one."""
    return {
        images: _intervals(group)
        for images, group in sorted(sets.items())
        if all("low" in record for record in group.values())
    } or None


def _intervals(group: Mapping[int, Record]) -> Certified:
    bounded = [record for record in group.values() if record["high"] is not None]
    widths = [record["high"] - record["low"] for record in bounded]
    ends: list[bool] = []
    for record in group.values():
        if record["truth"] > 0:
            high = record["high"]
            inside = high is not None and accurate(
                ratios([record["low"], high], [record["truth"]] * 2)
            )
            ends.append(bool(np.all(inside)))
    return Certified(
        width=float(np.mean(widths)) if widths else None,
        unbounded=len(group) - len(bounded),
        accuracy=share(ends),
    )


def _curves(groups: _Groups) -> list[tuple[Condition, Roc]]:
    """ROC curves of those that scored both clean and triggered images."""
    return [
        (condition, roc(*(_columns(groups[condition][k], "score")[0] for k in (CLEAN, TRIGGERED))))
        for condition in sorted(groups, key=_order)
        if CLEAN in groups[condition] and TRIGGERED in groups[condition]
    ]


def _flagged(condition: Condition, sets: Mapping[str, Mapping[int, Record]]) -> dict[str, Any]:
    """What a detector flags at the threshold that its results name."""
    thresholds = {one["threshold"] for group in sets.values() for one in group.values()}
    if len(thresholds) > 1:
        raise ValueError(
            f"summarise: {condition[2]} must have one threshold, got {sorted(thresholds)}"
        )
    (threshold,) = thresholds
    found: dict[str, Any] = {"threshold": threshold}
    for images, name in ((CLEAN, "false_alarms"), (TRIGGERED, "detected")):
        found[name] = asdict(share([one["score"] > threshold for one in sets[images].values()]))
    return found
