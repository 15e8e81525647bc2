"""The summary of an experiment: the measures of every counter, with the chance levels.

Shares alone are not conclusive: a clean counter errs by more than a tenth on every third clean
image. Each attack success rate is therefore compared with two chance levels: that of the clean
counter on the same triggered images, and that of the counter itself on the images without trigger.
A backdoor works by the excess over the larger level, and it is removed by what is left over the
smaller one, since a defense that makes the counter err to the attack's side raises a level, too.
One that makes it err to the other side lowers all rates; there, only rho_Acc beside it is
conclusive.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pycc.backdoor.evaluation.measures import KEY
from pycc.metrics.backdoor import (
    BACKDOORED,
    CLEAN,
    CLEAN_MODEL,
    TRIGGERED,
    BackdoorMetrics,
    BackdoorSummary,
    Certified,
    Detection,
    Row,
    row,
)
from pycc.metrics.detection import Roc, roc
from pycc.metrics.rates import accurate, ratios, succeeded
from pycc.metrics.shares import Difference, Share, difference, share
from pycc.runs import Record

_FIRST = ("add", "minus", "multiply", "divide", "fine-tuning")
"""The paper's order of strategies, and its defense; others follow by name."""

Condition = tuple[str | None, str, str | None]
"""Strategy, model, defense."""
_REFERENCE: Condition = (None, CLEAN_MODEL, None)
"""The clean, undefended model: on triggered images, the first chance level of every strategy."""


def metrics_of(records: Iterable[Record]) -> list[BackdoorMetrics]:
    """The metrics of every strategy, model and defense, in the paper's order.

    ``excess`` and ``left`` have the smaller (``left``: the larger) ends of the 95 % intervals of
    both differences, Newcombe's for pairs. Such an interval leans to the side of the value; it is
    not one of 95 % for the larger or smaller of two levels that are themselves estimates.
    ValueError as of ``summarise``.

    >>> from pycc.backdoor import record
    >>> common = {"strategy": "add", "model": "backdoored", "defense": None, "raises": True}
    >>> (metrics,) = metrics_of([
    ...     record(**common, images=images, index=0, name="a", truth=10, count=count)
    ...     for images, count in (("clean", 10.5), ("triggered", 30.0))
    ... ])
    >>> metrics.triggered.success.value, metrics.chance_no_trigger.value, metrics.excess
    (1.0, 0.0, None)
    """
    counted, _ = _grouped(records)
    directions = _directions(counted)
    reference = counted.get(_REFERENCE, {}).get(TRIGGERED)
    return [
        _metrics(condition, counted[condition], reference, directions.get(condition[0]))
        for condition in sorted(counted, key=_order)
    ]


def summarise(records: Iterable[Record]) -> BackdoorSummary:
    """Compute all measures of an experiment from its results, which may come in any order.

    ``records`` are results as of ``record``.

    ValueError for two results of one key, a strategy that both raises and lowers counts, an image
    with two truths, and a detector with two thresholds.

    >>> summarise([])
    BackdoorSummary(rows=[], detections=[])
    """
    records = list(records)
    _, scored = _grouped(records)
    detections = [
        _detection(condition, curve, scored[condition]) for condition, curve in _curves(scored)
    ]
    return BackdoorSummary(metrics_of(records), detections)


def curves(records: Iterable[Record]) -> dict[str, Roc]:
    """Compute ROC curves of detectors' scores, by the names of detector and strategy.

    ``records`` are results as of ``record``; those without a score are left out.

    >>> from pycc.backdoor import record
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
    """Collect ratios r [M] of predicted to true counts, for a picture of their densities.

    Returns panels by row and column, each with its strategies. ``records`` are results as of
    ``record``. The rows are clean and triggered images, the columns the ``defenses`` of the
    backdoored model (None: as it was trained). The clean model, if it was measured, is in each
    panel under the name "clean model". Panels without a backdoored model are left out.

    >>> from pycc.backdoor import record
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
        plain = counted.get(_REFERENCE, {}).get(images)
        for defense in defenses:
            groups = [] if plain is None else [("clean model", plain)]
            groups += [
                (str(condition[0]), counted[condition][images])
                for condition in sorted(counted, key=_order)
                if condition[1:] == (BACKDOORED, defense) and images in counted[condition]
            ]
            panel = {}
            for label, group in groups:
                values = ratios(*_columns(group, "count", "truth")).values
                if len(values):
                    panel[label] = values
            if any(label != "clean model" for label in panel):
                panels[f"{images} images", defense or BACKDOORED] = panel
    return panels


_Groups = dict[Condition, dict[str, dict[int, Record]]]


def _grouped(records: Iterable[Record]) -> tuple[_Groups, _Groups]:
    """Counts and scores by condition, images and index, in the order of the index."""
    counted: _Groups = {}
    scored: _Groups = {}
    truths: dict[int, int] = {}
    for record in sorted(records, key=lambda r: int(r["index"])):
        condition = (record["strategy"], record["model"], record["defense"])
        groups = scored if "score" in record else counted
        group = groups.setdefault(condition, {}).setdefault(record["images"], {})
        index = int(record["index"])
        if index in group:
            raise ValueError(
                f"summarise: results must differ in {', '.join(KEY)}, got two of "
                f"{[record[field] for field in KEY]}"
            )
        group[index] = record
        if "truth" in record and truths.setdefault(index, record["truth"]) != record["truth"]:
            raise ValueError(
                f"summarise: image {index} must have one truth, "
                f"got {truths[index]} and {record['truth']}"
            )
    return counted, scored


def _directions(groups: _Groups) -> dict[str | None, bool]:
    """Whether each strategy raises counts."""
    directions: dict[str | None, bool] = {}
    for (strategy, _, _), sets in groups.items():
        for record in (record for group in sets.values() for record in group.values()):
            if record["raises"] is None:
                continue
            if directions.setdefault(strategy, record["raises"]) != record["raises"]:
                raise ValueError(f"summarise: {strategy} must raise or lower counts, got both")
    return directions


def _order(condition: Condition) -> tuple[Any, ...]:
    def place(name: str | None) -> tuple[int, str]:
        if name is None:
            return -1, ""
        return (_FIRST.index(name) if name in _FIRST else len(_FIRST)), name

    strategy, model, defense = condition
    return place(strategy), model != CLEAN_MODEL, place(defense)


def _columns(group: Mapping[int, Record], *names: str) -> list[list[Any]]:
    return [[record[name] for record in group.values()] for name in names]


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
    with_heads = {index: record for index, record in group.items() if record["truth"] > 0}
    hits = succeeded(ratios(*_columns(with_heads, "count", "truth")), raises)
    return dict(zip(with_heads, hits.tolist(), strict=True))


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
    over_each = [difference(attacked, [hits[index] for index in common]) for hits in known]
    # The difference from the larger level is the smaller one.
    excess, left = (
        Difference(
            end(over.value for over in over_each), end(over.low for over in over_each),
            end(over.high for over in over_each), len(common),
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
    inside: list[bool] = []
    for record in group.values():
        if record["truth"] > 0:
            low, high, truth = record["low"], record["high"], record["truth"]
            inside.append(
                high is not None and bool(accurate(ratios([low, high], [truth] * 2)).all())
            )
    return Certified(
        width=float(np.mean(widths)) if widths else None,
        unbounded=len(group) - len(bounded),
        accuracy=share(inside),
    )


def _curves(groups: _Groups) -> list[tuple[Condition, Roc]]:
    """ROC curves of those that scored both clean and triggered images."""
    return [
        (condition, roc(*(_columns(groups[condition][k], "score")[0] for k in (CLEAN, TRIGGERED))))
        for condition in sorted(groups, key=_order)
        if CLEAN in groups[condition] and TRIGGERED in groups[condition]
    ]


def _detection(
    condition: Condition, curve: Roc, sets: Mapping[str, Mapping[int, Record]]
) -> Detection:
    """The quality of a detector at the threshold that its results name."""
    thresholds = {record["threshold"] for group in sets.values() for record in group.values()}
    if len(thresholds) > 1:
        raise ValueError(
            f"summarise: {condition[2]} must have one threshold, got {sorted(thresholds)}"
        )
    (threshold,) = thresholds
    false_alarms, detected = (
        share([record["score"] > threshold for record in sets[images].values()])
        for images in (CLEAN, TRIGGERED)
    )
    return Detection(*condition, curve.auc, threshold, false_alarms, detected)
