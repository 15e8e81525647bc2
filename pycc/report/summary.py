"""The summary of an attack run and its table: functions of the results alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from pycc import metrics
from pycc.runs import Record

_KEY = ("victim", "patch_size", "surrogates", "condition")


@dataclass(frozen=True)
class Check:
    """The outcome of one sanity check.

    >>> Check("gradient", "fail", "error 0.5; bound 1e-3").failed
    True
    """

    name: str
    verdict: str
    """``pass``, ``fail`` or ``not applicable``."""
    figure: str
    """The measured figure, and its bound."""

    @property
    def failed(self) -> bool:
        """Whether it speaks against the run."""
        return self.verdict == "fail"

    def json(self) -> dict[str, str]:
        """Return it as a JSON object, as ``checks.json`` and ``summary.json`` store it."""
        return asdict(self)


@dataclass(frozen=True)
class SummaryRow:
    """One condition, patch size, surrogates and victim, over all images and seeds.

    Errors are in people, shares in per cent; with several seeds, means over them. Values that are
    undefined are None, errors against the heads of images without annotation among them.

    >>> clean = {"index": 0, "truth": 100, "condition": "clean", "count": 90.0, "area": 0.0}
    >>> (row,) = summarise([clean]).rows
    >>> row.condition, row.mae, row.bias
    ('clean', 10.0, -10.0)
    """

    victim: str | None
    patch_size: int | float | None
    surrogates: str | None
    condition: str
    images: int
    seeds: int
    mae: float | None
    rmse: float | None
    bias: float | None
    mae_by_seed: tuple[float, ...] | None
    mae_low: float | None
    """Lower end of the MAE in 95 % of bootstrap samples of the images."""
    mae_high: float | None
    """Upper end, likewise."""
    mean_count: float
    error_rate: float | None
    """Against the clean prediction, per cent."""
    error_rate_undefined: int
    """Images whose clean prediction is 0."""
    area: float
    """The patch's share of the image's pixels, per cent."""
    gain_over_noise: float | None
    """The MAE less that of noise of the same size and place."""
    mae_by_group: Mapping[str, float] | None = None
    """None for images that do not come in groups."""
    mae_over_groups: float | None = None
    """The mean over the groups."""

    def json(self) -> Record:
        """Return it as a JSON object; groups only where images come in groups."""
        row = asdict(self)
        row["mae_by_seed"] = None if self.mae_by_seed is None else [*self.mae_by_seed]
        if self.mae_by_group is None:
            del row["mae_by_group"], row["mae_over_groups"]
        return row


@dataclass(frozen=True)
class AttackSummary:
    """The outcome of an attack run: a function of its records, and of its sanity checks.

    >>> AttackSummary(images=0, rows=()).json()
    {'images': 0, 'rows': []}
    """

    images: int
    rows: tuple[SummaryRow, ...]
    checks: tuple[Check, ...] = ()
    """() without checks."""

    def json(self) -> Record:
        """Return it as a JSON object, as ``summary.json`` stores it."""
        value: Record = {"images": self.images, "rows": [row.json() for row in self.rows]}
        if self.checks:
            value["checks"] = [check.json() for check in self.checks]
        return value


def summarise(records: Sequence[Record], checks: Sequence[Check] = ()) -> AttackSummary:
    """Compute one row for each condition, patch size, surrogates and victim.

    ``records`` are the results of an attack run, ``checks`` its sanity checks.

    Order of rows: victim by victim no patch and PGD, then size by size (in the order in which they
    were requested) the baselines and the attacks.

    >>> common = {"index": 0, "truth": 100, "surrogates": None, "victim": None}
    >>> clean = {**common, "condition": "clean", "patch_size": None, "count": 90.0, "area": 0.0}
    >>> noise = {**common, "condition": "noise", "patch_size": 20, "count": 95.0, "area": 0.01}
    >>> [(row.condition, row.mae) for row in summarise([clean, noise]).rows]
    [('clean', 10.0), ('noise', 5.0)]
    """
    groups: dict[tuple[object, ...], list[Record]] = {}
    for record in sorted(records, key=lambda r: (int(r["index"]), r.get("seed", 0))):
        groups.setdefault(tuple(record.get(name) for name in _KEY), []).append(record)
    victims, sizes, surrogates, conditions = (
        list(dict.fromkeys(record.get(name) for record in records)) for name in _KEY
    )
    sizes = [None, *(size for size in sizes if size is not None)]
    # Baselines come first, in the order in which they were measured.
    surrogates.sort(key=lambda label: label is not None)
    optimised = {r["condition"] for r in records if "loss_history" in r}
    conditions.sort(key=lambda condition: condition in optimised)
    rows: list[SummaryRow] = []
    for victim in victims:
        clean = {r["index"]: r["count"] for r in groups.get((victim, None, None, "clean"), [])}
        for size in sizes:
            noise = _errors(groups.get((victim, size, None, "noise"), [])).mae
            for condition in conditions:
                for label in surrogates:
                    group = groups.get((victim, size, label, condition))
                    if group:
                        rows.append(_row(group, clean, noise))
    images = len({r["index"] for r in records if r["condition"] == "clean"})
    return AttackSummary(images, tuple(rows), tuple(checks))


def _row(group: Sequence[Record], clean: Mapping[int, float], noise: float | None) -> SummaryRow:
    """One row; ``noise`` is the MAE of noise of the same size."""
    first, by_seed = group[0], _by_seed(group)
    errors = _errors(group)
    counts = [[record["count"] for record in records] for records in by_seed]
    rates = [
        metrics.error_rate([clean[record["index"]] for record in records], count)
        for records, count in zip(by_seed, counts, strict=True)
    ]
    defined = [rate.percent for rate in rates if rate.percent is not None]
    return SummaryRow(
        victim=first.get("victim"),
        patch_size=first.get("patch_size"),
        surrogates=first.get("surrogates"),
        condition=first["condition"],
        images=len({record["index"] for record in group}),
        seeds=len(by_seed),
        **asdict(errors),
        mean_count=float(np.mean([metrics.mean_count(count) for count in counts])),
        error_rate=float(np.mean(defined)) if defined else None,
        error_rate_undefined=max(rate.undefined for rate in rates),
        area=100 * sum(record["area"] for record in group) / len(group),
        gain_over_noise=None if errors.mae is None or noise is None else errors.mae - noise,
    )


def _by_seed(group: Sequence[Record]) -> list[list[Record]]:
    records: dict[int, list[Record]] = {}
    for record in group:
        records.setdefault(record.get("seed", 0), []).append(record)
    return [*records.values()]


@dataclass(frozen=True)
class _Errors:
    """The fields of a row that compare counts with annotated heads; None without annotation."""

    mae: float | None = None
    rmse: float | None = None
    bias: float | None = None
    mae_by_seed: tuple[float, ...] | None = None
    mae_low: float | None = None
    mae_high: float | None = None
    mae_by_group: Mapping[str, float] | None = None
    mae_over_groups: float | None = None


def _errors(group: Sequence[Record]) -> _Errors:
    if not group or any(record["truth"] is None for record in group):
        return _Errors()
    pairs = [([r["truth"] for r in rs], [r["count"] for r in rs]) for rs in _by_seed(group)]
    by_image: dict[int, list[float]] = {}
    for record in group:
        error = abs(record["count"] - record["truth"])
        by_image.setdefault(record["index"], []).append(error)
    low, high = metrics.bootstrap([float(np.mean(values)) for values in by_image.values()])
    mae, rmse, bias = (
        float(np.mean([measure(truth, count) for truth, count in pairs]))
        for measure in (metrics.mae, metrics.rmse, metrics.bias)
    )
    by_group = None
    groups = [record["group"] for record in group if "group" in record]
    if groups:
        truth, counts = ([record[name] for record in group] for name in ("truth", "count"))
        by_group = metrics.mae_by_group(truth, counts, groups)
    return _Errors(
        mae=mae,
        rmse=rmse,
        bias=bias,
        mae_by_seed=tuple(metrics.mae(truth, count) for truth, count in pairs),
        mae_low=low,
        mae_high=high,
        mae_by_group=by_group,
        mae_over_groups=None if by_group is None else float(np.mean([*by_group.values()])),
    )


_Column = tuple[str, Callable[[SummaryRow], float | None], int]

_COLUMNS: Sequence[_Column] = (
    ("MAE", lambda row: row.mae, 1),
    ("RMSE", lambda row: row.rmse, 1),
    ("bias", lambda row: row.bias, 1),
    ("mean count", lambda row: row.mean_count, 1),
    ("error rate %", lambda row: row.error_rate, 1),
    ("gain over noise", lambda row: row.gain_over_noise, 1),
    ("area %", lambda row: row.area, 3),
)
"""Title, value and decimals of each column of numbers."""


def table(
    summary: AttackSummary, *, published: Mapping[int, tuple[float, float]] | None = None
) -> str:
    """Format the rows of a summary as aligned text, with notes below.

    ``published`` holds MAE and RMSE by size in pixels (0: no patch) to stand beside the attacks.

    >>> clean = {"index": 0, "truth": 100, "count": 90.0, "area": 0.0, "condition": "clean",
    ...          "patch_size": None, "surrogates": None, "victim": None}
    >>> table(summarise([clean])).splitlines()[2].split()
    ['clean', '10.0', '10.0…10.0', '10.0', '-10.0', '90.0', '0.0', '-', '0.000']
    """
    rows = summary.rows
    names: dict[str, Callable[[SummaryRow], str | None]] = {
        "victim": lambda row: row.victim,
        "surrogates": lambda row: row.surrogates,
    }
    several = {name: of for name, of in names.items() if any(of(row) is not None for row in rows)}
    head = ["patch", "patch size", *several, *(title for title, _, _ in _COLUMNS)]
    head.insert(head.index("MAE") + 1, "95 %")
    if published:
        head += ["published MAE", "RMSE"]
    lines = [head]
    for row in rows:
        size = "" if row.patch_size is None else str(row.patch_size)
        labels = [of(row) or "" for of in several.values()]
        line = [row.condition, size, *labels, *(_cell(of(row), d) for _, of, d in _COLUMNS)]
        ends = _cell(row.mae_low, 1), _cell(row.mae_high, 1)
        line.insert(len(several) + 3, "-" if row.mae_low is None else "…".join(ends))
        if published:
            line += _beside(row, published)
        lines.append(line)
    return "\n".join([*aligned(lines, 2 + len(several)), *_notes(summary, bool(published))])


def _notes(summary: AttackSummary, published: bool) -> list[str]:
    """The lines below the table."""
    rows = summary.rows
    seeds = max((row.seeds for row in rows), default=1)
    text = [
        f"images: {summary.images}; seeds: {seeds}; errors in people, with bootstrap intervals "
        "over the images; error rate against the clean prediction"
    ]
    if published:
        text.append("published: APAM (arXiv 2104.10868), Table 1, white-box, target 10 x GT")
    if any(row.mae is None for row in rows):
        text.append("images without annotation: errors against their heads are unknown")
    for row in rows:
        if row.condition == "clean" and row.mae_by_group is not None:
            means = ", ".join(f"{name} {mae:,.1f}" for name, mae in row.mae_by_group.items())
            victim = "" if row.victim is None else f", {row.victim}"
            text.append(f"MAE by group{victim}: {means}; mean {people(row.mae_over_groups)}")
    undefined = max((row.error_rate_undefined for row in rows), default=0)
    if undefined:
        images = "1 image" if undefined == 1 else f"{undefined} images"
        text.append(f"error rate undefined on {images}: the clean prediction is 0")
    return text


def people(value: float | None) -> str:
    """A number of people, or a dash where it is unknown."""
    return _cell(value, 1)


def aligned(lines: Sequence[Sequence[str]], left: int) -> list[str]:
    """Columns, the first ``left`` of them to the left, and a rule below the head."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for number, line in enumerate(lines):
        cells = [
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(cells).rstrip())
        if number == 0:
            text.append("-" * len(text[0]))
    return text


def _beside(row: SummaryRow, published: Mapping[int, tuple[float, float]]) -> list[str]:
    """The published MAE and RMSE of a row, empty where there are none."""
    size = 0 if row.condition == "clean" else row.patch_size
    white_box = row.condition == "clean" or row.surrogates is None
    fixed = row.condition in ("grey", "black", "noise", "crowd", "pgd")
    errors = published.get(size) if white_box and not fixed and isinstance(size, int) else None
    return ["", ""] if errors is None else [f"{value:,.1f}" for value in errors]


def checks_table(checks: Sequence[Check]) -> str:
    """Format the checks of a run as aligned text: verdict, name, figure.

    >>> print(checks_table([Check("gradient", "pass", "error 1e-6")]))
    check            figure
    -----------------------
    pass   gradient  error 1e-6
    """
    lines = [[check.verdict, check.name, check.figure] for check in checks]
    return "\n".join(aligned([["check", "", "figure"], *lines], 3))


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
