"""Train the built-in weights: MCNN on the built-in scenes.

``python -m pycc.train.builtin --out FILE.npz --minutes M`` renders scenes in a second process,
trains the published grey MCNN on crops of them, chooses the best state on validation scenes and
writes it with metadata that states the recipe and the errors on test scenes. The learning rate
follows the clock, so the result depends on the machine's speed as well as on the seed.
"""

from __future__ import annotations

import argparse
import copy
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pycc import metrics, models, ops
from pycc.checks import lacks_memory
from pycc.data.synthetic import scene
from pycc.models import CounterModel
from pycc.random import Stream
from pycc.types import Sample

_CONTRAST = 64.0
"""Grey levels that count as one unit for the first convolutions (about a picture's contrast)."""
_SHAPES = ((480, 640), (480, 640), (384, 512), (480, 640), (768, 1024), (320, 480))
"""Sizes of the training scenes, in turn."""
_HELD_OUT_SHAPE = (480, 640)
_AVERAGING = 0.998
"""Share of the running mean of the weights, which is what gets validated, that a step keeps."""
_EVALUATED = ("validation_scenes", "test_scenes")


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a training run, but for the machine's speed.

    ``minutes`` counts training steps only. ``crop`` and ``sigma`` (of the Gaussian that stands
    for a head) are in pixels. ``count_weight`` weighs the error of the count in the loss. For the
    first ``bfloat16_share`` of the time the convolutions are computed in bfloat16. ValueError for
    a value out of range.
    """

    seed: int = 0
    minutes: float = 42.0
    scenes: int = 1600
    batch: int = 4
    crop: int = 256
    sigma: float = 4.0
    learning_rate: float = 2e-3
    count_weight: float = 0.1
    bfloat16_share: float = 0.85
    validation_scenes: int = 48
    test_scenes: int = 120

    def __post_init__(self) -> None:
        for what in ("minutes", "scenes", "batch", "sigma", "learning_rate", *_EVALUATED):
            if not 0 < getattr(self, what) < math.inf:
                raise ValueError(f"train: {what} must be positive, got {getattr(self, what)}")
        if not 0.0 <= self.count_weight < math.inf:
            raise ValueError(f"train: count_weight must be at least 0, got {self.count_weight}")
        side = min(min(shape) for shape in _SHAPES)
        if self.crop % 4 or not 4 <= self.crop <= side:
            raise ValueError(f"train: crop must be a multiple of 4 up to {side}, got {self.crop}")
        if not 0.0 <= self.bfloat16_share <= 1.0:
            raise ValueError(f"train: bfloat16_share must be in 0…1, got {self.bfloat16_share}")


@dataclass(frozen=True)
class Rendered:
    """A scene as training keeps it."""

    image: Tensor
    """[3,H,W] uint8."""
    density: Tensor
    """[1,H//4,W//4] float32, people per cell; its sum is the number of heads."""


@dataclass(frozen=True)
class Report:
    """Counting errors over scenes: people, but for ``relative`` (mean |error| / heads)."""

    scenes: int
    mae: float
    rmse: float
    bias: float
    relative: float


def render(seed: int, index: int, *, sigma: float, stride: int = 4) -> Rendered:
    """Training scene ``index`` and its density map (fixed ``sigma`` pixels, mass kept)."""
    sample = scene(seed, index, shape=_SHAPES[index % len(_SHAPES)])
    height, width = sample.image.shape[1:]
    density = ops.density_map(
        sample.points.float(), sigma, (height, width), stride=stride, boundary="renormalize"
    )
    image = (sample.image * 255.0).round().to(torch.uint8)
    return Rendered(image=image, density=density.unsqueeze(0))


def initialise(net: nn.Module, seed: int) -> None:
    """He's initialisation, fitted to grey values of 0…255 and a small, positive output.

    The published N(0, 0.01) needs hundreds of epochs. Here the first kernels sum to zero, so that
    a uniform grey gives nothing, and are divided by a picture's contrast; the fusing weights are
    small and positive, so that the last ReLU starts open everywhere.
    """
    stream = Stream(seed, "initialise")
    for name, module in net.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        shape = tuple(module.weight.shape)
        weight = stream.normal(shape) * math.sqrt(2.0 / math.prod(shape[1:]))
        if name.startswith("fuse"):
            weight = 0.01 * np.abs(stream.normal(shape))
        elif shape[1] == 1:
            weight = (weight - weight.mean(axis=(2, 3), keepdims=True)) / _CONTRAST
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(weight))
            if module.bias is not None:
                module.bias.zero_()


def optimiser(net: nn.Module, learning_rate: float) -> torch.optim.Adam:
    """Adam; the first kernels, which see values of 0…255, take steps smaller by the contrast."""
    first = [p for p in net.parameters() if p.ndim == 4 and p.shape[1] == 1]
    chosen = {id(parameter) for parameter in first}
    rest = [parameter for parameter in net.parameters() if id(parameter) not in chosen]
    groups = [{"params": rest, "unit": 1.0}, {"params": first, "unit": 1.0 / _CONTRAST}]
    adam = torch.optim.Adam(groups, lr=learning_rate)
    set_learning_rate(adam, learning_rate)
    return adam


def set_learning_rate(adam: torch.optim.Adam, learning_rate: float) -> None:
    """Give every group ``learning_rate`` in its own unit."""
    for group in adam.param_groups:
        group["lr"] = learning_rate * group["unit"]


def draw_batch(scenes: Sequence[Rendered], recipe: Recipe, step: int) -> tuple[Tensor, Tensor]:
    """Images [batch,3,crop,crop] in [0,1] and density [batch,1,crop//4,crop//4] of a step.

    Random crops aligned to cells, mirrored half of the time, with a random gain and offset of the
    brightness; a pure function of the scenes, the recipe and the step.
    """
    images, targets = [], []
    cells = recipe.crop // 4
    for draw in range(recipe.batch):
        stream = Stream(recipe.seed, "crop", step=step, draw=draw)
        chosen = scenes[int(stream.integers(len(scenes)))]
        height, width = chosen.density.shape[1:]
        top = int(stream.integers(height - cells + 1))
        left = int(stream.integers(width - cells + 1))
        image = chosen.image[:, 4 * top : 4 * (top + cells), 4 * left : 4 * (left + cells)]
        target = chosen.density[:, top : top + cells, left : left + cells]
        if stream.integers(2):
            image, target = image.flip(2), target.flip(2)
        gain, offset = float(stream.uniform(0.75, 1.25)), float(stream.uniform(-0.1, 0.1))
        images.append((image.float() / 255.0 * gain + offset).clamp(0.0, 1.0))
        targets.append(target)
    return torch.stack(images), torch.stack(targets)


def train_step(
    counter: CounterModel,
    adam: torch.optim.Adam,
    images: Tensor,
    target: Tensor,
    *,
    count_weight: float,
    bfloat16: bool = False,
) -> float:
    """One step of Adam; the loss before it.

    The loss is 1000 x the squared error per cell (a density of 0.1 is a crowd) plus
    ``count_weight`` x the error of each crop's count relative to 10 + its heads.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        density = counter(images)
    density = density.float()
    truth = target.sum((1, 2, 3))
    error = (density.sum((1, 2, 3)) - truth).abs() / (truth + 10.0)
    loss = 1000.0 * nn.functional.mse_loss(density, target) + count_weight * error.mean()
    adam.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(counter.net.parameters(), 5.0)
    adam.step()
    return float(loss.detach())


def held_out(
    seed: int, split: str, count: int, shape: tuple[int, int] = _HELD_OUT_SHAPE
) -> Iterator[Sample]:
    """The first ``count`` scenes of a split, of one shape."""
    return (scene(seed, index, shape=shape, split=split) for index in range(count))


@torch.no_grad()
def evaluate(counter: CounterModel, samples: Iterable[Sample]) -> Report:
    """Errors of a counter on samples, which need at least one head each."""
    truth, predicted = [], []
    for sample in samples:
        truth.append(float(sample.count))
        predicted.append(float(counter(sample.image.unsqueeze(0)).sum()))
    relative = np.abs(np.array(predicted) - truth) / np.array(truth)
    return Report(
        scenes=len(truth),
        mae=metrics.mae(truth, predicted),
        rmse=metrics.rmse(truth, predicted),
        bias=metrics.bias(truth, predicted),
        relative=float(relative.mean()),
    )


class Training:
    """A run that can be stopped anywhere and continued from its checkpoint."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.counter = models.create("mcnn")
        initialise(self.counter.net, recipe.seed)
        self.average = copy.deepcopy(self.counter).eval()
        self.adam = optimiser(self.counter.net, recipe.learning_rate)
        self.step = 0
        self.seconds = 0.0
        self._validation: list[Sample] = []
        self.best = math.inf
        self.best_state = copy.deepcopy(self.average.net.state_dict())

    @property
    def share(self) -> float:
        """Share of the training time that is used up, 0…1."""
        return min(1.0, self.seconds / (60.0 * self.recipe.minutes))

    def advance(self, scenes: Sequence[Rendered]) -> float:
        """One step on the scenes there are; the loss before it."""
        started = time.monotonic()
        warm = min(1.0, (self.step + 1) / 200)
        cosine = 0.5 * (1.0 + math.cos(math.pi * self.share))
        set_learning_rate(self.adam, self.recipe.learning_rate * warm * max(cosine, 0.003))
        loss = train_step(
            self.counter,
            self.adam,
            *draw_batch(scenes, self.recipe, self.step),
            count_weight=self.recipe.count_weight,
            bfloat16=self.share < self.recipe.bfloat16_share,
        )
        self.step += 1
        keep = min(_AVERAGING, self.step / (self.step + 10.0))
        with torch.no_grad():
            for mean, value in zip(
                self.average.net.parameters(), self.counter.net.parameters(), strict=True
            ):
                mean.lerp_(value, 1.0 - keep)
        self.seconds += time.monotonic() - started
        return loss

    def validate(self) -> Report:
        """Errors of the averaged weights on validation scenes; keeps the best weights so far."""
        if not self._validation:
            scenes = self.recipe.validation_scenes
            self._validation = list(held_out(self.recipe.seed, "val", scenes))
        report = evaluate(self.average, self._validation)
        if report.relative < self.best:
            self.best = report.relative
            self.best_state = copy.deepcopy(self.average.net.state_dict())
        return report

    def save(self, path: Path) -> None:
        """Write the checkpoint, whole or not at all."""
        content = {
            "recipe": asdict(self.recipe),
            "counter": self.counter.net.state_dict(),
            "average": self.average.net.state_dict(),
            "adam": self.adam.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "best_state": self.best_state,
        }
        partial = path.with_name(f".{path.name}.part")
        torch.save(content, partial)
        os.replace(partial, path)

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint; ValueError if it is broken or of another recipe."""
        try:
            content = torch.load(path, weights_only=True)
        except OSError:
            raise
        # On a damaged file torch, zipfile and the unpickler fail with any type.
        except Exception as error:
            if lacks_memory(error):
                raise
            raise ValueError(f"train: {path} is not a readable checkpoint") from None
        if not isinstance(content, dict) or not isinstance(content.get("recipe"), dict):
            raise ValueError(f"train: {path} is not a checkpoint of this training")
        mine, theirs = asdict(self.recipe), content["recipe"]
        changed = [key for key in mine if mine[key] != theirs.get(key)]
        if changed:
            key = changed[0]
            raise ValueError(
                f"train: {path} was made with {key}={theirs.get(key)!r}, got {mine[key]!r}"
            )
        try:
            self.counter.net.load_state_dict(content["counter"])
            self.average.net.load_state_dict(content["average"])
            self.adam.load_state_dict(content["adam"])
            self.step, self.seconds = int(content["step"]), float(content["seconds"])
            self.best, self.best_state = float(content["best"]), content["best_state"]
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            if lacks_memory(error):
                raise
            raise ValueError(f"train: {path} is not a checkpoint of this training") from None


def _render(task: tuple[int, int, float]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    torch.set_num_threads(1)
    rendered = render(task[0], task[1], sigma=task[2])
    return rendered.image.numpy(), rendered.density.numpy()


def rendered_scenes(recipe: Recipe) -> Iterator[Rendered]:
    """The training scenes in order, rendered ahead by one other process."""
    tasks = ((recipe.seed, index, recipe.sigma) for index in range(recipe.scenes))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for image, density in pool.imap(_render, tasks, chunksize=4):
            yield Rendered(image=torch.from_numpy(image), density=torch.from_numpy(density))


def run(recipe: Recipe, out: Path, *, resume: bool, every_minutes: float = 3.0) -> Report:
    """Train, choose on validation scenes, measure on test scenes, write ``out``."""
    checkpoint = out.with_name(out.name + ".checkpoint")
    training = Training(recipe)
    if resume:
        training.restore(checkpoint)
    source = rendered_scenes(recipe)
    scenes: list[Rendered] = []
    saved, losses = training.seconds, []
    while training.share < 1.0:
        # The pool grows by the step, not by the clock, so that the pictures of a step are the
        # same whichever process is faster.
        while len(scenes) < min(recipe.scenes, 65 + training.step // 2):
            scenes.append(next(source))
        losses.append(training.advance(scenes))
        if training.seconds - saved >= 60.0 * every_minutes or training.share >= 1.0:
            report = training.validate()
            training.save(checkpoint)
            print(
                f"{training.seconds / 60:6.1f} min  step {training.step}  scenes {len(scenes)}  "
                f"loss {np.mean(losses):.4f}  val MAE {report.mae:.2f}  bias {report.bias:+.2f}  "
                f"relative {100 * report.relative:.2f} %",
                flush=True,
            )
            saved, losses = training.seconds, []
    return finish(training, out)


def finish(training: Training, out: Path) -> Report:
    """Measure the chosen weights on test scenes and write them with their metadata."""
    recipe = training.recipe
    counter = models.create("mcnn")
    counter.net.load_state_dict(training.best_state)
    counter.eval()
    report = evaluate(counter, held_out(recipe.seed, "test", recipe.test_scenes))
    metadata = {
        "data": "pycc.data.synthetic",
        "recipe": asdict(recipe),
        "shapes": _SHAPES,
        "steps": training.step,
        "minutes": round(training.seconds / 60.0, 1),
        "threads": torch.get_num_threads(),
        "validation_relative_error": training.best,
        "test": {**asdict(report), "seed": recipe.seed, "split": "test", "shape": _HELD_OUT_SHAPE},
    }
    models.save(counter, out, metadata=metadata)
    return report


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are raised, so that bad usage ends like bad input: in one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _check_usage(out: Path, threads: int) -> None:
    """ValueError, before any work, for what would fail only after the training."""
    most = 4 * (os.cpu_count() or 1)
    if not 1 <= threads <= most:
        raise ValueError(f"train: --threads must be 1…{most}, got {threads}")
    if out.suffix != ".npz":
        raise ValueError(f"train: --out must be an .npz file, got {out}")
    if not out.parent.is_dir():
        raise ValueError(f"train: --out needs a folder that exists, got {out}")
    if out.is_dir():
        raise ValueError(f"train: --out must be a file, got the folder {out}")
    if not os.access(out.parent, os.W_OK):
        raise ValueError(f"train: --out needs a folder that can be written to, got {out}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 done, 2 bad usage or input."""
    parser = _Parser(prog="python -m pycc.train.builtin", description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="weights to write (.npz)")
    parser.add_argument("--resume", action="store_true", help="continue from OUT.checkpoint")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    for name, default in asdict(Recipe()).items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type(default), default=default, help=f"default {default}")
    try:
        given = vars(parser.parse_args(arguments))
        out, resume, threads = given.pop("out"), given.pop("resume"), given.pop("threads")
        recipe = Recipe(**given)
        _check_usage(out, threads)
        torch.set_num_threads(threads)
        report = run(recipe, out, resume=resume)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(
        f"test: MAE {report.mae:.2f}  RMSE {report.rmse:.2f}  bias {report.bias:+.2f}  "
        f"relative {100 * report.relative:.2f} % over {report.scenes} scenes"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
