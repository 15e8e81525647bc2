"""Pictures of an experiment: of all results, and of one test image with several counters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycc.backdoor.evaluation.counting import EvaluationSet
from pycc.backdoor.evaluation.experiment import Experiment, Stage
from pycc.backdoor.evaluation.gradcam import default_layers, gradcam
from pycc.backdoor.evaluation.summary import curves, distributions
from pycc.backdoor.poisoning.strategies import Strategy
from pycc.counters import device_of
from pycc.grid import in_region
from pycc.metrics.backdoor import CLEAN, TRIGGERED, Images
from pycc.models import CounterModel
from pycc.report import missing_library
from pycc.report.backdoor_pictures import Panel, draw_gradcam, draw_kde, draw_maps, draw_roc
from pycc.runs import Record


@dataclass(frozen=True)
class View:
    """A test image as one counter sees it: a panel of a picture."""

    title: str
    made: Callable[[], CounterModel]
    """Returns the counter."""
    images: Images
    """Whether the image is clean or triggered."""


def check(
    tested: EvaluationSet, counter: CounterModel, *, image: str | None, layers: Sequence[str] | None
) -> None:
    """Raise ValueError for errors that would stop ``draw_run`` at its end; arguments as there."""
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
    """Draw all pictures of the experiment in ``folder`` into its subfolder ``pictures``.

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
    """Draw the pictures of one test image with the counters of each strategy.

    ``image`` as of ``chosen_image``, ``layers`` as of ``draw_image``. Missing counters are trained;
    ``complete`` returns whether there are none.
    """
    names = [defense.name for defense in experiment.defenses]
    tested = EvaluationSet(experiment.test, experiment.trigger, experiment.seed)
    index, drawn = chosen_image(tested, image), []
    for strategy in experiment.strategies:  # the counters of one strategy at a time in memory
        before, *defended = _stages(experiment, folder, strategy)
        views = [
            View("clean image, backdoored", before.made, CLEAN),
            View("triggered, backdoored", before.made, TRIGGERED),
            *(
                View(f"triggered, {name}", after.made, TRIGGERED)
                for name, after in zip(names, defended, strict=True)
            ),
        ]
        pictures = folder / "pictures"
        drawn += draw_image(views, tested, index, pictures, name=strategy.name, layers=layers)
    return drawn


def complete(experiment: Experiment, folder: Path) -> bool:
    """Whether the counters that ``draw_images`` needs all exist."""
    return all(
        stage.done
        for strategy in experiment.strategies
        for stage in _stages(experiment, folder, strategy)
    )


def _stages(experiment: Experiment, folder: Path, strategy: Strategy) -> list[Stage]:
    """The stages of a strategy that are drawn: the backdoored counter and the defended ones."""
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
    """Draw densities of ratios (``kde.png``) and ROC curves (``roc.png``), if there are any.

    The densities are those of the undefended counters and of the ``defenses``. ValueError without
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
    """The index of the test image with this name; by default of the first one with people.

    ValueError, with the first names, for an unknown name.
    """
    names = tested.names
    if name is not None:
        if name not in names:
            first = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
            raise ValueError(f"--picture-image: expected a test image of {first}, got {name!r}")
        return names.index(name)
    return next((k for k in range(len(names)) if tested.triggered.true_count(k)), 0)


def draw_image(
    views: Sequence[View],
    tested: EvaluationSet,
    index: int,
    folder: Path,
    *,
    name: str,
    layers: Sequence[str] | None = None,
) -> list[Path]:
    """Draw Grad-CAMs (``gradcam-NAME.png``, one row per layer) and maps (``maps-NAME.png``).

    Both are of the ``views`` of one test image. ValueError without matplotlib, and for a layer that
    a counter does not have.
    """
    samples = {images: tested.sample(images, index) for images in (CLEAN, TRIGGERED)}
    chosen = tuple(layers) if layers else default_layers(views[0].made())
    rows: dict[str, list[Panel]] = {layer: [] for layer in chosen}
    maps = []
    for view in views:
        counter, sample = view.made(), samples[view.images]
        image = sample.image.to(device_of(counter))
        pixels = _pixels(sample.image)
        for layer in chosen:
            cam = gradcam(counter, image, layer, sample.roi)
            caption = f"{view.title}\n{cam.count:,.1f} people, maximum {cam.maximum:.2g}"
            rows[layer].append(Panel(caption, pixels, _array(cam.heat)))
        with torch.no_grad():
            cells = in_region(counter(image[None]), sample.roi, counter.stride)[0, 0]
        maps.append(Panel(view.title, pixels, _array(cells)))
    truth = tested.triggered.true_count(index)
    title = f"{name}: {tested.names[index]}, {truth:,} heads"
    files = [folder / f"gradcam-{name}.png", folder / f"maps-{name}.png"]
    draw_gradcam(rows, files[0], title=title)
    draw_maps(maps, files[1], title=title)
    return files


def _pixels(image: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def _array(values: Tensor) -> NDArray[np.float32]:
    return np.asarray(values.detach().cpu().float().numpy())
