"""The results of a certified data set as a table, curves and images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pycc.certify.calibration import CalibratedNumber, with_unit
from pycc.certify.maps import certified_map, shape_of
from pycc.certify.methods.base import Certificate
from pycc.certify.results import CLEAN, CertifyRow, CertifyRun, CertifySummary
from pycc.defense.windows import window_of
from pycc.report.figures import save_figure
from pycc.report.summary import aligned, people
from pycc.runs import Record
from pycc.types import Counter, Sample

_REASONS = 3
"""Number of reasons for unbounded or vacuous intervals per row of the table, most common first."""
_IMAGES = 3
"""Number of images that are drawn, those with the widest intervals."""


def certificates_table(summary: CertifySummary, seconds: Mapping[tuple[str, int], float]) -> str:
    """Format clean, certified and attacked error, width and time, by patch and method.

    ``seconds`` are per image, by method and patch size. They are not part of the summary, which
    must not depend on time.
    """
    lines = [
        ["patch", "method", "clean MAE", "certified MAE", "attacked MAE", "mean width", "vacuous",
         "s per image"],
        ["clean", "", people(summary.undefended_mae), "", "", "", "", ""],
    ]  # fmt: skip
    attacked = {(row.method, row.patch_size): row.attacked_mae for row in summary.attacks}
    for row in summary.rows:
        key = row.method, row.patch_size
        lines.append([
            str(row.patch_size),
            row.method,
            people(row.clean_mae),
            f"unbounded on {row.unbounded}" if row.unbounded else people(row.certified_mae),
            people(attacked.get(key)),
            people(row.width),
            f"{100 * row.vacuous:.0f} %",
            f"{seconds[key]:.2f}",
        ])  # fmt: skip
    return "\n".join([*aligned(lines, 2), *_notes(summary)])


def _notes(summary: CertifySummary) -> Iterator[str]:
    """Iterate over the lines below the table."""
    yield (
        f"images: {summary.images}; errors in people; certified: the mean distance between the "
        "truth and the farther end of the interval, for any patch at any place"
    )
    for row in summary.rows:
        yield from _reasons(row)
    if summary.undefended_mae is None:
        yield "images without annotation: errors against their heads are unknown"
    yield from map(_origin, summary.calibration.numbers)
    for completion in summary.calibration.completions:
        facts = completion.facts
        serves = "" if facts.method == "completion" else f" of {facts.method}"
        yield (
            f"completion network{serves} for {facts.patch_size} pixels: {facts.images} images of "
            f"{facts.source}, windows of {completion.model.grid.side} cells"
        )
    yield from _alarms(summary)
    for attack in summary.attacks:
        if attack.violations:
            yield (
                f"VIOLATED: {attack.method}, {attack.patch_size} pixels: "
                f"{attack.violations} attacked counts outside their intervals"
            )


def _alarms(summary: CertifySummary) -> Iterator[str]:
    """Iterate over the shares of images that raise an alarm, clean and attacked."""
    attacked = {(row.method, row.patch_size): row.alarms for row in summary.attacks}
    for row in summary.rows:
        if row.false_alarms is None:
            continue
        text = f"{row.method}, {row.patch_size} pixels: {100 * row.false_alarms:.0f} % false alarms"
        share = attacked.get((row.method, row.patch_size))
        if share is not None:
            text += f", alarms on {100 * share:.0f} % of the attacked images"
        yield f"{text}; intervals and attacked errors are those without an alarm"


def _reasons(row: CertifyRow) -> Iterator[str]:
    """Iterate over the most common reasons for unbounded or vacuous intervals."""
    reasons = list(row.reasons.items())
    where = f"{row.method}, {row.patch_size} pixels"
    for reason, images in reasons[:_REASONS]:
        yield f"{where}, {images} of {row.images} images: {reason}"
    if len(reasons) > _REASONS:
        yield f"{where}: {len(reasons) - _REASONS} more reasons in results.jsonl"


def _origin(number: CalibratedNumber) -> str:
    """Format a calibrated number and the data it was fixed on."""
    patch = "" if number.patch_size is None else f" for {number.patch_size} pixels"
    if number.counter:
        patch += f", counter {number.counter + 1}"
    where = f"{number.images} images of {number.source}" if number.images else number.source
    return f"{number.kind}{patch}: {with_unit(number.kind, f'{number.value:.4g}')}, {where}"


def draw(
    run: CertifyRun,
    counter: Counter,
    samples: Sequence[Sample],
    method: Certificate,
    patch_sizes: Sequence[int],
    folder: Path,
) -> None:
    """Draw the curve of a run and its images with the widest intervals into ``folder``.

    The intervals are those of one method and of the third patch size, or of the last if there are
    fewer. Without a bounded receptive field no window of cells exists, and only the curve is drawn.
    """
    draw_curve(run.summary, folder / "curve.png")
    if counter.receptive_field is None:
        return
    sizes = tuple(dict.fromkeys(patch_sizes))
    patch_size = sizes[min(2, len(sizes) - 1)]
    key = method.name, patch_size
    records = [r for r in run.records if (r["method"], r["patch_size"]) == key]
    for record in widest(records, _IMAGES):
        sample = samples[record["index"]]
        density = certified_map(counter, sample).cpu()
        window = window_of(counter, patch_size, shape_of(sample.image), shape_of(density))
        slack = method.slack_map(density, window, run.calibration)
        top, left = divmod(int(slack.argmax()), slack.shape[1])
        stride = counter.stride
        heads = "" if record["truth"] is None else f"{record['truth']:.0f} heads, "
        draw_intervals(
            np.ascontiguousarray(sample.image.permute(1, 2, 0).numpy()),
            slack.float().numpy(),
            method.slack_label,
            f"{sample.name}: {heads}{record['count']:.0f} counted by {method.name}, "
            f"{record['low']:.0f} to {record['high']:.0f} whatever {patch_size} pixels show",
            folder / f"{record['index']:04d}-{method.name}-{patch_size}.png",
            (left * stride, top * stride, window[1] * stride, window[0] * stride),
        )


def draw_curve(summary: CertifySummary, file: Path) -> None:
    """Draw the mean width and the certified error by patch side, one line per method.

    Draw only the width if images are not annotated.
    """
    from matplotlib.figure import Figure

    known = summary.undefended_mae is not None
    figure = Figure(figsize=(9.0 if known else 4.8, 4.0), dpi=120, layout="constrained")
    widths, *others = figure.subplots(1, 1 + known, squeeze=False)[0]
    for method in sorted({row.method for row in summary.rows}):
        rows = [row for row in summary.rows if row.method == method and row.width is not None]
        widths.plot([row.patch_size for row in rows], [row.width for row in rows], "o-",
                    label=method)  # fmt: skip
        bounded = [row for row in rows if row.certified_mae is not None]
        for errors in others:
            errors.plot(
                [row.patch_size for row in bounded], [row.certified_mae for row in bounded], "o-"
            )
    widths.set(xlabel="side of the patch, pixels", ylabel="mean width of the interval, people")
    widths.set_ylim(bottom=0)
    if widths.get_legend_handles_labels()[0]:
        widths.legend()
    for errors in others:
        errors.axhline(summary.undefended_mae, color="0.5", linestyle=":", label="no patch")
        errors.set(xlabel="side of the patch, pixels", ylabel="certified MAE, people")
        errors.set_ylim(bottom=0)
        errors.legend()
    save_figure(figure, file)


def draw_intervals(
    image: NDArray[np.float32],
    heat: NDArray[np.float32],
    label: str,
    title: str,
    file: Path,
    box: tuple[float, float, float, float],
) -> None:
    """Draw an image [H,W,3] in [0,1], and where a patch would change its count most.

    ``heat`` [h,w] is the number of people in the worst window that a patch could affect around each
    cell, drawn over the image; ``label`` describes it. ``box`` (x, y, width, height), in pixels,
    marks the worst window of all.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(10.0, 4.0), dpi=100, layout="constrained")
    plain, hot = figure.subplots(1, 2)
    height, width = image.shape[:2]
    plain.imshow(image)
    hot.imshow(image.mean(2), cmap="gray")
    shown = hot.imshow(heat, cmap="inferno", alpha=0.6, extent=(0, width, height, 0))
    figure.colorbar(shown, ax=hot, label=label)
    hot.add_patch(Rectangle(box[:2], box[2], box[3], fill=False, edgecolor="cyan", linewidth=1.5))
    for axes in (plain, hot):
        axes.set_axis_off()
    figure.suptitle(title)
    save_figure(figure, file)


def widest(records: Sequence[Record], number: int) -> list[Record]:
    """Return the ``number`` records with the widest bounded intervals, of one method and patch."""
    bounded = [r for r in records if r.get("high") is not None and r["method"] != CLEAN]
    return sorted(bounded, key=lambda r: r["low"] - r["high"])[:number]
