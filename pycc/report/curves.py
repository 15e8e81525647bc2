"""A training as a table, as curves and as TensorBoard files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pycc.report.summary import aligned, people


def training_table(records: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    """Format loss and validation by epoch (the first, the best and the last ten), then test errors.

    Recipes that choose their weights by another error than the MAE on clean images show that error
    as ``score``, from the epoch on in which it counts. Groups of test images (scenes) have one MAE
    each.
    """
    validations = {r["epoch"]: r for r in records if r["kind"] == "validation"}
    epochs = [r for r in records if r["kind"] == "train"]
    best = summary.get("best_epoch", -1)
    scored = any(r.get("score", r["mae"]) != r["mae"] for r in validations.values())
    lines = [["epoch", "loss", "rate", "images/s", "val MAE", "val RMSE", "bias"]]
    lines[0] += [*(["score"] if scored else []), ""]
    for record in epochs:
        number = record["epoch"]
        if number not in (0, best) and number < len(epochs) - 10:
            continue
        validation = validations.get(number)
        lines.append([
            str(number + 1),
            f"{record['loss']:.4g}",
            f"{record['lr']:.2g}",
            f"{record['images_per_second']:.1f}",
            *(
                [f"{validation[name]:,.1f}" for name in ("mae", "rmse", "bias")]
                if validation
                else ["-"] * 3
            ),
            *([people((validation or {}).get("score"))] if scored else []),
            "best" if number == best else "",
        ])  # fmt: skip
    text = aligned(lines, len(lines[0]) - 1)
    if summary.get("validation"):
        text.append(
            f"validation: {summary['validation']['images']} of the training images, not cropped; "
            "errors in people" + ("; score, the error under the recipe, decides" if scored else "")
        )
    for name, errors in summary.get("test", {}).items():
        text.append(
            f"test, {name}: MAE {errors['mae']:,.1f}, RMSE {errors['rmse']:,.1f}, bias "
            f"{errors['bias']:+,.1f} over {errors['images']} images"
        )
        if "mae_by_group" in errors:
            by_group = errors["mae_by_group"].items()
            groups = ", ".join(f"{group} {mae:,.1f}" for group, mae in by_group)
            mean = errors["mae_over_groups"]
            text.append(f"test, {name}: MAE of {groups}; their mean {mean:,.1f}")
    return "\n".join(text)


def draw_training(records: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw the loss, and validation errors in people, by epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    losses, errors = figure.subplots(1, 2)
    train = [r for r in records if r["kind"] == "train"]
    held = [r for r in records if r["kind"] == "validation"]
    losses.plot([r["epoch"] + 1 for r in train], [r["loss"] for r in train])
    losses.set(xlabel="epoch", ylabel="loss")
    if train and min(r["loss"] for r in train) > 0:
        losses.set_yscale("log")
    for name, label in (("mae", "MAE"), ("rmse", "RMSE")):
        errors.plot([r["epoch"] + 1 for r in held], [r[name] for r in held], label=label)
    errors.set(xlabel="epoch", ylabel="validation error, people")
    errors.set_ylim(bottom=0)
    if held:
        errors.legend()
    figure.savefig(file, dpi=120)


def check_tensorboard() -> None:
    """Raise ImportError, naming the extra, if TensorBoard is not installed."""
    if find_spec("tensorboard") is None:
        raise ImportError("TensorBoard's files need tensorboard: pip install 'pycc[tensorboard]'")


def write_tensorboard(records: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write every number of the records as a scalar by epoch; ImportError without TensorBoard."""
    check_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))
    for record in records:
        for name, value in record.items():
            if name not in ("kind", "epoch") and isinstance(value, int | float):
                writer.add_scalar(f"{record['kind']}/{name}", value, record["epoch"] + 1)
    writer.close()
