"""What a backdoor experiment measures: its results' format, and their summary.

A result is the count of one image, clean or triggered, by one counter: the clean one or one with a
backdoor, as trained or after a defense. Shares alone say little: of clean predictions of clean
counters every third is off by more than a tenth. So every attack success rate stands beside two
chance levels, what the clean counter does on the same triggered images and what the counter itself
does on the images without trigger, and its excess over the larger of the two.

The measures themselves (``ratios``, ``accuracy``, ``success``, ``bands``, ``kde``, ``roc``) are
those of ``pycc.report.shares``, which pictures and tables need too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pycc import metrics
from pycc.report.shares import (
    BANDS,
    BANDWIDTH,
    Difference,
    Ratios,
    Roc,
    Share,
    accuracy,
    accurate,
    bands,
    difference,
    kde,
    ratios,
    roc,
    share,
    succeeded,
    success,
    wilson,
)
from pycc.run import Record

__all__ = [
    "BANDS",
    "BANDWIDTH",
    "KEY",
    "Difference",
    "Ratios",
    "Roc",
    "Row",
    "Share",
    "accuracy",
    "accurate",
    "bands",
    "curves",
    "difference",
    "distributions",
    "kde",
    "ratios",
    "record",
    "roc",
    "row",
    "share",
    "succeeded",
    "success",
    "summarise",
    "wilson",
]

KEY = ("strategy", "model", "defense", "images", "index")
"""What identifies a result, for ``pycc.run.Run``."""
CLEAN_MODEL, BACKDOORED = "clean", "backdoored"
CLEAN, TRIGGERED = "clean", "triggered"

_FIRST = ("add", "minus", "multiply", "divide", "fine-tuning")
"""The paper's order of strategies, and its defense; others follow by name."""

Condition = tuple[str | None, str, str | None]
"""Strategy, model, defense."""


def record(
    *,
    strategy: str | None,
    model: Literal["clean", "backdoored"],
    defense: str | None,
    images: Literal["clean", "triggered"],
    index: int,
    name: str,
    truth: int | None = None,
    count: float | None = None,
    raises: bool | None = None,
    target: int | None = None,
    low: float | None = None,
    high: float | None = None,
    score: float | None = None,
) -> Record:
    """One result as it stands in ``results.jsonl``, checked.

    Args:
        strategy: the attack's, as in "add"; None for the clean model, which knows none: its results
            on triggered images then are the chance level of every strategy with that trigger.
        model: the counter before any defense.
        defense: what was done to it; None: nothing. A detector is a defense with scores.
        images: whether the trigger is in the image.
        index: of the image in the test set, from 0 on.
        name: the image's.
        truth: heads annotated in the image, whatever the attack makes of them.
        count: people predicted. Either this or ``score``.
        raises: whether the strategy raises counts; None without a strategy.
        target: heads after the strategy's change, for triggered images.
        low, high: a certified interval of the count, ``high`` None where it is unbounded.
        score: a detector's, higher on images it takes for triggered.

    Raises:
        ValueError: none or both of count and score, a count without truth, a strategy without
            ``raises``, a backdoored model without strategy, a number that is not finite.
    """
    if (count is None) == (score is None):
        raise ValueError(
            "record: expected a count or a score, got " + ("none", "both")[count is not None]
        )
    if model not in (CLEAN_MODEL, BACKDOORED):
        raise ValueError(f"record: model must be 'clean' or 'backdoored', got {model!r}")
    if images not in (CLEAN, TRIGGERED):
        raise ValueError(f"record: images must be 'clean' or 'triggered', got {images!r}")
    if model == BACKDOORED and strategy is None:
        raise ValueError("record: a backdoored model must have a strategy, got None")
    if (strategy is None) != (raises is None):
        raise ValueError(
            f"record: raises must be given with a strategy and only then, got {raises} "
            f"with {strategy!r}"
        )
    found: Record = {
        "strategy": strategy, "model": model, "defense": defense, "images": images,
        "index": index, "name": name, "raises": raises,
    }  # fmt: skip
    for label, value in (("count", count), ("score", score), ("low", low), ("high", high)):
        if value is not None and not math.isfinite(value):
            raise ValueError(f"record: {label} must be finite, got {value}")
    if score is not None:
        return {**found, "score": float(score)}
    assert count is not None
    if truth is None:
        raise ValueError("record: a count must come with the truth, got None")
    found |= {"truth": int(truth), "target": target, "count": float(count)}
    return found if low is None else {**found, "low": float(low), "high": high}


@dataclass(frozen=True)
class Row:
    """What one counter does on one set of images."""

    images: int
    without_heads: int
    """Images whose truth is 0: part of the errors, of no share."""
    headless_count: float | None
    """Mean count of these, in people."""
    negative: int
    """Images with a count below 0: lowered to nobody, as shares take them."""
    mae: float
    rmse: float
    mean_ratio: float | None
    """Mean of r over images with heads; 1 for a perfect counter."""
    accuracy: Share
    success: Share | None
    """Attack success rate against the true count; None where no strategy gives a direction."""
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
    """The measures of [N] predicted counts against [N] true ones.

    ``raises`` says which way the attack goes, if there is one; ``target`` [N] are the counts it
    wants. ValueError without images, and as ``ratios`` says.
    """
    r = ratios(counts, truth)
    headless = r.headless
    return Row(
        images=len(counts),
        without_heads=len(headless),
        headless_count=float(headless.mean()) if len(headless) else None,
        negative=int((np.asarray(counts, np.float64) < 0).sum()),
        mae=metrics.mae(truth, counts),
        rmse=metrics.rmse(truth, counts),
        mean_ratio=float(r.values.mean()) if len(r.values) else None,
        accuracy=accuracy(r),
        success=None if raises is None else success(r, raises),
        bands=None if raises is None else bands(r, raises),
        target_success=None if target is None else accuracy(ratios(counts, target)),
    )


def summarise(records: Iterable[Record]) -> dict[str, Any]:
    """All measures of an experiment: the same JSON value for the same results in any order.

    ``rows`` has one entry for each strategy, model and defense: ``clean`` and ``triggered`` are
    :class:`Row` on images without and with trigger (None where there are no results),
    ``chance_clean_model`` the clean, undefended model's ρ_Asr on the triggered images,
    ``chance_no_trigger`` the ρ_Asr of the entry's own model on images without trigger. ``excess``
    is ρ_Asr on triggered images less the larger chance level, over the images that both have, its
    interval that of the nearer of both differences. ``certified`` says of certified intervals on
    images without trigger how wide they are, how many are unbounded and how many images are
    certified to be counted accurately (``accuracy``).

    ``detections`` has one entry for each strategy, model and detector: area under the ROC curve,
    and the share of triggered images detected where 5 % of the clean ones are flagged.

    ValueError for two results of one key, a strategy that goes both ways, and an image with two
    truths.
    """
    counted, scored = _grouped(records)
    directions = _directions(counted)
    rows = []
    for condition in sorted(counted, key=_order):
        strategy, model, defense = condition
        raises = directions.get(strategy)
        sets = counted[condition]
        entry: dict[str, Any] = {
            "strategy": strategy, "model": model, "defense": defense, "raises": raises,
            "clean": _row(sets.get(CLEAN), raises),
            "triggered": _row(sets.get(TRIGGERED), raises),
            "certified": _certified(sets.get(CLEAN)),
        }  # fmt: skip
        entry |= _chance(sets, _reference(counted, strategy), raises)
        rows.append(entry)
    detections = [
        {"strategy": condition[0], "model": condition[1], "defense": condition[2],
         "auc": curve.auc, "detected": asdict(curve.detected(0.05))}
        for condition, curve in _curves(scored)
    ]  # fmt: skip
    return {"rows": rows, "detections": detections}


def curves(records: Iterable[Record]) -> dict[str, Roc]:
    """ROC curves of the detectors' scores, named by detector and strategy, for pictures."""
    _, scored = _grouped(records)
    return {f"{defense or model}, {strategy or 'no strategy'}": curve
            for (strategy, model, defense), curve in _curves(scored)}  # fmt: skip


def distributions(
    records: Iterable[Record], defenses: Sequence[str | None] = (None,)
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Ratios r [M] for a picture of densities: panels by title, in each the strategies by name.

    The panels are clean images under each of the ``defenses`` of the backdoored model (None: as it
    was trained), then triggered images. The clean model, where measured, stands in each panel under
    the name "clean model". Panels without results are left out.
    """
    counted, _ = _grouped(records)
    panels: dict[str, dict[str, NDArray[np.float64]]] = {}
    for images in (CLEAN, TRIGGERED):
        for defense in defenses:
            found = {}
            plain = counted.get((None, CLEAN_MODEL, None), {}).get(images)
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
                panels[f"{defense or 'backdoored'}: {images} images"] = found
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


def _row(group: Mapping[int, Record] | None, raises: bool | None) -> dict[str, Any] | None:
    if not group:
        return None
    counts, truth, target = _columns(group, "count", "truth", "target")
    whole = None if any(one is None for one in target) else target
    return asdict(row(counts, truth, raises=raises, target=whole))


def _reference(groups: _Groups, strategy: str | None) -> Mapping[int, Record] | None:
    """The clean, undefended model on the strategy's triggered images."""
    for name in (strategy, None):
        found = groups.get((name, CLEAN_MODEL, None), {}).get(TRIGGERED)
        if found:
            return found
    return None


def _hits(group: Mapping[int, Record], raises: bool) -> dict[int, bool]:
    """Whether the attack succeeds, by index of the images with heads."""
    with_heads = {index: one for index, one in group.items() if one["truth"] > 0}
    found = succeeded(ratios(*_columns(with_heads, "count", "truth")), raises)
    return dict(zip(with_heads, found.tolist(), strict=True))


def _chance(
    sets: Mapping[str, Mapping[int, Record]],
    reference: Mapping[int, Record] | None,
    raises: bool | None,
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "chance_clean_model": None, "chance_no_trigger": None, "excess": None
    }  # fmt: skip
    if raises is None:
        return found
    levels = {"chance_clean_model": reference, "chance_no_trigger": sets.get(CLEAN)}
    hits = {name: _hits(group, raises) for name, group in levels.items() if group}
    for name, one in hits.items():
        found[name] = asdict(share(list(one.values())))
    triggered = _hits(sets.get(TRIGGERED, {}), raises)
    common = [k for k in triggered if all(k in one for one in hits.values())]
    if len(hits) == len(levels) and common:
        attacked = [triggered[k] for k in common]
        both = [difference(attacked, [one[k] for k in common]) for one in hits.values()]
        # The excess over the larger level is the lesser difference, and so are its ends.
        found["excess"] = {
            "value": min(one.value for one in both),
            "low": min(one.low for one in both),
            "high": min(one.high for one in both),
            "total": len(common),
        }
    return found


def _certified(group: Mapping[int, Record] | None) -> dict[str, Any] | None:
    """What certified intervals say; None unless every image has one."""
    if not group or not all("low" in one for one in group.values()):
        return None
    bounded = [one for one in group.values() if one["high"] is not None]
    widths = [one["high"] - one["low"] for one in bounded]
    ends: dict[int, bool] = {}
    for one in group.values():
        if one["truth"] > 0:
            high = one["high"]
            inside = high is not None and accurate(ratios([one["low"], high], [one["truth"]] * 2))
            ends[one["index"]] = bool(np.all(inside))
    return {
        "width": float(np.mean(widths)) if widths else None,
        "unbounded": len(group) - len(bounded),
        "accuracy": asdict(share(list(ends.values()))),
    }


def _curves(groups: _Groups) -> list[tuple[Condition, Roc]]:
    """ROC curves of those that scored both clean and triggered images."""
    return [
        (condition, roc(*(_columns(groups[condition][k], "score")[0] for k in (CLEAN, TRIGGERED))))
        for condition in sorted(groups, key=_order)
        if CLEAN in groups[condition] and TRIGGERED in groups[condition]
    ]
