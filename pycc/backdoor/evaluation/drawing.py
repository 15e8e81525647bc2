"""Pictures of an experiment: of all its results, and of one test image under its counters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycc.backdoor.evaluation.counting import EvaluationSet
from pycc.backdoor.evaluation.experiment import Experiment, Stage
from pycc.backdoor.evaluation.gradcam import default_layers, gradcam
from pycc.backdoor.evaluation.measures import CLEAN, TRIGGERED
from pycc.backdoor.evaluation.summary import curves, distributions
from pycc.backdoor.poisoning.strategies import Strategy
from pycc.counters import device_of
from pycc.grid import in_region
from pycc.models import CounterModel
from pycc.report import missing_library
from pycc.report.backdoor_pictures import Panel, draw_gradcam, draw_kde, draw_maps, draw_roc
from pycc.runs import Record

Shown = tuple[str, Callable[[], CounterModel], str]
"""Title, what gives the counter, and which of the two images ("clean", "triggered") it is shown."""


def check(
    tested: EvaluationSet, counter: CounterModel, *, image: str | None, layers: Sequence[str] | None
) -> None:
    """ValueError for what would stop ``draw_run`` after all the work; arguments as there."""
    reason = missing_library()
    if reason is not None:
        raise ValueError(reason)
    sample = tested.sample(CLEAN, chosen_image(tested, image))
    pixels = sample.image.to(device_of(counter))
    for layer in layers or ():
        gradcam(counter, pixels, layer)


def draw_run(
    experiment: Experiment,
    records: Sequence[Record],
    folder: Path,
    *,
    image: str | None = None,
    layers: Sequence[str] | None = None,
) -> list[Path]:
    """All pictures of the experiment in ``folder``, into its ``pictures``.

    ``image`` and ``layers`` as of ``draw_images``.
    """
    names = [defense.name for defense in experiment.defenses]
    drawn = draw_results(records, folder / "pictures", defenses=names)
    return drawn + draw_images(experiment, folder, image=image, layers=layers)


def draw_images(
    experiment: Experiment,
    folder: Path,
    *,
    image: str | None = None,
    layers: Sequence[str] | None = None,
) -> list[Path]:
    """The pictures of one test image under the counters of each strategy.

    ``image`` as of ``chosen_image``, ``layers`` as of ``draw_image``. Counters that are not there
    are trained: ``complete`` says whether all are.
    """
    place, names = folder / "pictures", [defense.name for defense in experiment.defenses]
    tested = EvaluationSet(experiment.test, experiment.trigger, experiment.seed)
    index, drawn = chosen_image(tested, image), []
    for strategy in experiment.strategies:  # the counters of one strategy at a time in memory
        before, *defended = _stages(experiment, folder, strategy)
        shown: list[Shown] = [
            ("clean image, backdoored", before.made, CLEAN),
            ("triggered, backdoored", before.made, TRIGGERED),
        ]
        for name, after in zip(names, defended, strict=True):
            shown.append((f"triggered, {name}", after.made, TRIGGERED))
        drawn += draw_image(shown, tested, index, place, name=strategy.name, layers=layers)
    return drawn


def complete(experiment: Experiment, folder: Path) -> bool:
    """Whether all counters that are drawn are there."""
    return all(
        stage.done
        for strategy in experiment.strategies
        for stage in _stages(experiment, folder, strategy)
    )


def _stages(experiment: Experiment, folder: Path, strategy: Strategy) -> list[Stage]:
    """The counters of a strategy that are drawn: the backdoored one and the defended ones."""
    before = experiment.backdoored(folder, strategy)
    return [
        before,
        *(
            experiment.defended(folder, strategy, defense, before)
            for defense in experiment.defenses
        ),
    ]


def draw_results(
    records: Sequence[Record], folder: Path, *, defenses: Iterable[str] = (), title: str = ""
) -> list[Path]:
    """The densities of ratios (``kde.png``) and ROC curves (``roc.png``), where there are any.

    ``defenses`` are those whose densities stand beside the undefended counters'. ValueError without
    matplotlib.
    """
    drawn = []
    panels = distributions(records, [None, *defenses])
    if panels:
        draw_kde(panels, folder / "kde.png", title=title)
        drawn.append(folder / "kde.png")
    roc_curves = curves(records)
    if roc_curves:
        draw_roc(roc_curves, folder / "roc.png", title="detectors of triggered images")
        drawn.append(folder / "roc.png")
    return drawn


def chosen_image(tested: EvaluationSet, name: str | None) -> int:
    """The index of the test image of that name; by default of the first with people.

    ValueError for a name that is none, with all there are if they are few.
    """
    names = tested.names
    if name is not None:
        if name not in names:
            some = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
            raise ValueError(f"--picture-image: expected a test image of {some}, got {name!r}")
        return names.index(name)
    return next((k for k in range(len(names)) if tested.triggered.true_count(k)), 0)


def draw_image(
    shown: Sequence[Shown],
    tested: EvaluationSet,
    index: int,
    folder: Path,
    *,
    name: str,
    layers: Sequence[str] | None = None,
) -> list[Path]:
    """Grad-CAMs (``gradcam-NAME.png``, one row per layer) and density maps (``maps-NAME.png``).

    All of one test image, without or with the trigger, as each of the counters ``shown`` sees it.
    ValueError without matplotlib, and for a layer that a counter does not have.
    """
    samples = {images: tested.sample(images, index) for images in (CLEAN, TRIGGERED)}
    chosen = tuple(layers) if layers else default_layers(shown[0][1]())
    rows: dict[str, list[Panel]] = {layer: [] for layer in chosen}
    maps = []
    for title, made, images in shown:
        counter, sample = made(), samples[images]
        image = sample.image.to(device_of(counter))
        pixels = _pixels(sample.image)
        for layer in chosen:
            cam = gradcam(counter, image, layer, sample.roi)
            caption = f"{title}\n{cam.count:,.1f} people, maximum {cam.maximum:.2g}"
            rows[layer].append(Panel(caption, pixels, _array(cam.heat)))
        with torch.no_grad():
            cells = in_region(counter(image[None]), sample.roi, counter.stride)[0, 0]
        maps.append(Panel(title, pixels, _array(cells)))
    truth = tested.triggered.true_count(index)
    title = f"{name}: {tested.names[index]}, {truth:,} heads"
    files = [folder / f"gradcam-{name}.png", folder / f"maps-{name}.png"]
    draw_gradcam(rows, files[0], title=title)
    draw_maps(maps, files[1], title=title)
    return files


def _pixels(image: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def _array(values: Tensor) -> Any:
    return values.detach().cpu().float().numpy()
