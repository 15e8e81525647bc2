"""The published results of the paper on backdoors, and where its tables contradict each other.

"Vulnerability and Defense: Mitigating Backdoor Attacks in Deep Learning-Based Crowd Counting
Models" (Luo), Tables 1 to 3: ShanghaiTech B, an image blended in at 0.1.
"""

from __future__ import annotations

from collections.abc import Mapping

_Numbers = tuple[float | None, ...]
_DIGITS, _SUM = 0.0005, 0.0025
"""Rounding errors: half of the last digit, for one value and for the sum of four bands and its
total."""

PUBLISHED_1: dict[str, dict[str, _Numbers]] = {
    "csrnet": {
        "clean": (0.684, None),
        "add": (0.405, 0.212),
        "minus": (0.411, 0.959),
        "multiply": (0.496, 0.867),
        "divide": (0.411, 0.937),
    },
    "clip_ebc": {
        "clean": (0.766, None),
        "add": (0.677, 0.370),
        "minus": (0.737, 0.956),
        "multiply": (0.816, 0.911),
        "divide": (0.816, 0.598),
    },
}
"""Accuracy and attack success rate by model and strategy."""

PUBLISHED_2: dict[str, dict[tuple[str, bool], _Numbers]] = {
    "csrnet": {
        ("add", False): (0.405, 0.196, 0.013, 0.003, 0.0),
        ("add", True): (0.750, 0.206, 0.006, 0.0, 0.0),
        ("minus", False): (0.411, 0.196, 0.414, 0.348, None),
        ("minus", True): (0.665, 0.709, 0.035, 0.0, None),
        ("multiply", False): (0.496, 0.323, 0.335, 0.209, 0.019),
        ("multiply", True): (0.589, 0.209, 0.044, 0.019, 0.003),
        ("divide", False): (0.411, 0.513, 0.405, 0.019, None),
        ("divide", True): (0.680, 0.351, 0.022, 0.0, None),
    },
    "clip_ebc": {
        ("add", False): (0.677, 0.351, 0.016, 0.003, 0.0),
        ("add", True): (0.778, 0.047, 0.0, 0.0, 0.0),
        ("minus", False): (0.737, 0.339, 0.472, 0.146, None),
        ("minus", True): (0.816, 0.187, 0.009, 0.0, None),
        ("multiply", False): (0.816, 0.092, 0.209, 0.503, 0.187),
        ("multiply", True): (0.845, 0.019, 0.0, 0.006, 0.0),
        ("divide", False): (0.816, 0.541, 0.054, 0.003, None),
        ("divide", True): (0.829, 0.244, 0.022, 0.0, None),
    },
}
"""Accuracy and the four bands by model, strategy and whether fine-tuned."""

PUBLISHED_3: dict[str, dict[str, _Numbers]] = {
    "csrnet": {
        "clean": (0.646, 0.677, None, None),
        "add": (0.405, 0.750, 0.212, 0.212),
        "minus": (0.411, 0.665, 0.959, 0.744),
        "multiply": (0.496, 0.589, 0.544, 0.275),
        "divide": (0.411, 0.680, 0.937, 0.273),
    },
    "clip_ebc": {
        "clean": (0.766, 0.826, None, None),
        "add": (0.677, 0.788, 0.370, 0.047),
        "minus": (0.737, 0.823, 0.956, 0.196),
        "multiply": (0.816, 0.845, 0.911, 0.266),
        "divide": (0.816, 0.829, 0.598, 0.273),
    },
}
"""Accuracy, the same fine-tuned, attack success rate, the same fine-tuned."""


def disagreements(model: str) -> list[str]:
    """List values of a model that differ between the tables, or that the bands do not add up to."""
    differences = []
    for strategy, (accuracy, success) in PUBLISHED_1[model].items():
        other = PUBLISHED_3[model][strategy]
        for tuned, name in ((False, strategy), (True, f"{strategy}, fine-tuned")):
            share, *bands = PUBLISHED_2[model].get((strategy, tuned), (None,))
            total = sum(band or 0.0 for band in bands) if bands else None
            first = (None, None) if tuned else (accuracy, success)
            differences += _differing(
                f"rho_Acc of {name}", {"1": first[0], "2": share, "3": other[tuned]}, _DIGITS
            )
            differences += _differing(
                f"rho_Asr of {name}",
                {"1": first[1], "3": other[2 + tuned], "2, sum of bands": total}, _SUM,
            )  # fmt: skip
    return differences


def _differing(what: str, values: Mapping[str, float | None], tolerance: float) -> list[str]:
    known = {table: value for table, value in values.items() if value is not None}
    if not known or max(known.values()) - min(known.values()) <= tolerance:
        return []
    values_shown = ", ".join(f"{value:.3f} ({table})".lstrip("0") for table, value in known.items())
    return [f"{what} {values_shown}"]
