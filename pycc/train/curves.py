"""A training as a table, as curves and as TensorBoard files."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from pycc.report.figures import save_figure
from pycc.report.summary import aligned, people
from pycc.train.results import CountErrors, TrainRun, ValidationRow

_LAST = 10
"""Last epochs that the table shows."""


def training_table(run: TrainRun) -> str:
    """Format loss and validation by epoch (the first, the best and the last ten), then test errors.

    Recipes that choose their weights by another error than the MAE on clean images show that error
    as ``score``, from the epoch on in which it counts. Groups of test images (scenes) have one MAE
    each.
    """
    validations = {row.epoch: row for row in run.validations}
    best = run.summary.best_epoch
    scored = any(row.score not in (None, row.errors.mae) for row in run.validations)
    lines = [["epoch", "loss", "rate", "images/s", "val MAE", "val RMSE", "bias"]]
    lines[0] += [*(["score"] if scored else []), ""]
    for row in run.epochs:
        if row.epoch not in (0, best) and row.epoch < len(run.epochs) - _LAST:
            continue
        lines.append([
            str(row.epoch + 1),
            f"{row.loss:.4g}",
            f"{row.lr:.2g}",
            f"{row.images_per_second:.1f}",
            *_validated(validations.get(row.epoch), scored),
            "best" if row.epoch == best else "",
        ])  # fmt: skip
    text = aligned(lines, len(lines[0]) - 1)
    if run.summary.validation is not None:
        text.append(
            f"validation: {run.summary.validation.images} of the training images, not cropped; "
            "errors in people" + ("; score, the error under the recipe, decides" if scored else "")
        )
    for name, errors in (run.summary.test or {}).items():
        text += _tested(name, errors)
    return "\n".join(text)


def _validated(row: ValidationRow | None, scored: bool) -> list[str]:
    """The cells of a validation, dashes if there was none."""
    errors = [None] * 3 if row is None else [row.errors.mae, row.errors.rmse, row.errors.bias]
    score = [None if row is None else row.score] if scored else []
    return [people(value) for value in (*errors, *score)]


def _tested(name: str, errors: CountErrors) -> list[str]:
    text = [
        f"test, {name}: MAE {errors.mae:,.1f}, RMSE {errors.rmse:,.1f}, bias {errors.bias:+,.1f} "
        f"over {errors.images} images"
    ]
    if errors.mae_by_group is not None and errors.mae_over_groups is not None:
        groups = ", ".join(f"{group} {mae:,.1f}" for group, mae in errors.mae_by_group.items())
        mean = errors.mae_over_groups
        text.append(f"test, {name}: MAE of {groups}; their mean {mean:,.1f}")
    return text


def draw_training(run: TrainRun, file: Path) -> None:
    """Draw the loss, and validation errors in people, by epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), dpi=120, layout="constrained")
    losses, errors = figure.subplots(1, 2)
    losses.plot([row.epoch + 1 for row in run.epochs], [row.loss for row in run.epochs])
    losses.set(xlabel="epoch", ylabel="loss")
    if run.epochs and min(row.loss for row in run.epochs) > 0:
        losses.set_yscale("log")
    validated = [row.epoch + 1 for row in run.validations]
    errors.plot(validated, [row.errors.mae for row in run.validations], label="MAE")
    errors.plot(validated, [row.errors.rmse for row in run.validations], label="RMSE")
    errors.set(xlabel="epoch", ylabel="validation error, people")
    errors.set_ylim(bottom=0)
    if validated:
        errors.legend()
    save_figure(figure, file)


def check_tensorboard() -> None:
    """Raise ImportError, naming the extra, if TensorBoard is not installed."""
    if find_spec("tensorboard") is None:
        raise ImportError("TensorBoard's files need tensorboard: pip install 'pycc[tensorboard]'")


def write_tensorboard(run: TrainRun, folder: Path) -> None:
    """Write every number of the rows as a scalar by epoch; ImportError without TensorBoard."""
    check_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))
    for record in run.records:
        for name, value in record.items():
            if name not in ("kind", "epoch") and isinstance(value, int | float):
                writer.add_scalar(f"{record['kind']}/{name}", value, record["epoch"] + 1)
    writer.close()
