"""Train the built-in weights ``mcnn-synthetic``: the published grey MCNN on built-in scenes.

``python tools/train_builtin_weights.py --out RUN`` renders the training scenes into a cache
folder, trains with ``pycc.train.fit`` in the run folder ``RUN`` (a stopped training goes on with
``--resume``), measures the best weights on test scenes and writes ``RUN/mcnn-synthetic.npz``,
whose metadata states the recipe and these errors. The number of steps is fixed: the result
depends on the seed and on the arithmetic of the machine, never on its speed.
"""

from __future__ import annotations

import argparse
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pycc import metrics, models, train
from pycc.commands.progress import TerminalProgress
from pycc.counters import count_of
from pycc.data.dataset import Dataset
from pycc.data.density import recipes
from pycc.data.synthetic import Scenes, scene
from pycc.models.augmentation import ColourJitter
from pycc.models.mcnn import MCNN
from pycc.models.recipe import Crop, Optimiser, Recipe, Schedule
from pycc.ops import density_map
from pycc.random import Stream
from pycc.runs import write_atomic
from pycc.types import Counter, Sample

SHAPES = ((480, 640), (480, 640), (384, 512), (480, 640), (768, 1024), (256, 320))
"""Sizes of the training scenes, in turn; each holds a crop."""
TESTS = (((480, 640), 120), ((768, 1024), 30), ((384, 512), 40), ((240, 320), 30))
"""Size and number of the test scenes."""
VALIDATION = 48
"""Training scenes, the last ones, that no step sees: they choose the weights."""
WEIGHTS = "mcnn-synthetic.npz"
_CONTRAST = 64.0 / 255.0
"""Standard deviation of a typical scene, of grey levels in [0,1]."""
_COUNT_WEIGHT = 0.2


@recipes.register("fixed4_renormalized")
def _fixed4_renormalized(points: NDArray[np.float64], shape: tuple[int, int]) -> Tensor:
    """A Gaussian of 4 pixels for each head, all of it inside the image."""
    return density_map(torch.from_numpy(points), 4.0, shape, boundary="renormalize")


class SceneMCNN(MCNN):
    """The grey MCNN with a loss, an initialisation and a recipe for built-in scenes.

    It reads grey in [0,1], so that Adam's steps suit the first kernels as well as all others;
    ``reading("gray255")`` is the same counter in the published convention.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(input="gray_unit")
        initialise(self.net, seed)

    def loss(
        self,
        images: Tensor,
        target: Tensor,
        *,
        points: Sequence[Tensor] | None = None,
        region: Tensor | None = None,
    ) -> Tensor:
        """Compute 1000 x the squared error per cell (0.1 people are a crowd) + 0.2 x the count's.

        The error of the count is relative to 10 + the heads of the crop.
        """
        density = self._within(self(images), target, region).float()
        truth = target.sum((1, 2, 3))
        error = (density.sum((1, 2, 3)) - truth).abs() / (truth + 10.0)
        return 1000.0 * nn.functional.mse_loss(density, target) + _COUNT_WEIGHT * error.mean()

    def recipe(self) -> Recipe:
        """Return the recipe of the built-in weights."""
        return Recipe(
            source="tools/train_builtin_weights.py",
            optimisers=(Optimiser("adam", 2e-3),),
            epochs=18,
            batch=4,
            density={"": "fixed4_renormalized"},
            down_sampling="sum",
            schedule=Schedule("cosine_restarts", period=17, warmup=1, warmup_lr=4e-4),
            crop=Crop("fixed", size=(256, 256)),
            flip=0.5,
            augmentations=(
                ColourJitter(1.0, brightness=0.25, contrast=0.25, saturation=0.0),
            ),
            ema=0.998,
            clip=5.0,
        )  # fmt: skip


def initialise(net: nn.Module, seed: int) -> None:
    """He's initialisation, fitted to grey levels in [0,1] and a small, positive output.

    The published N(0, 0.01) needs hundreds of epochs. Here the first kernels sum to zero, so that
    a uniform grey gives nothing, and are divided by an image's contrast; the fusing weights are
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


class RenderedScenes(Dataset):
    """The first ``count`` training scenes, of ``SHAPES`` in turn, each rendered once.

    ``folder`` keeps their pixels in 8 bits, which is all that a scene has, and their heads.
    """

    origin = "synthetic"

    def __init__(self, folder: Path, count: int, seed: int) -> None:
        self.name = "synthetic/train"
        self.names = [f"train-{seed}-{index}" for index in range(count)]
        self._folder, self._seed = folder, seed
        folder.mkdir(parents=True, exist_ok=True)

    def render(self) -> None:
        """Render all scenes that the folder lacks."""
        progress = TerminalProgress("scenes")
        for index, name in enumerate(self.names):
            if not self._file(index).exists():
                self._load(index)
            progress(index + 1, len(self), f"rendering {name}")
        progress.close()

    def _file(self, index: int) -> Path:
        height, width = SHAPES[index % len(SHAPES)]
        return self._folder / f"{self.names[index]}-{height}x{width}.npz"

    def _load(self, index: int) -> Sample:
        file = self._file(index)
        if not file.exists():
            sample = scene(self._seed, index, shape=SHAPES[index % len(SHAPES)])
            pixels = (sample.image * 255.0).round().to(torch.uint8)
            content = io.BytesIO()
            np.savez(content, pixels=pixels.numpy(), points=sample.points.numpy())
            write_atomic(file, content.getvalue())
        with np.load(file) as stored:
            image = torch.from_numpy(stored["pixels"]).float() / 255.0
            return Sample(self.names[index], image, torch.from_numpy(stored["points"]))


@dataclass(frozen=True)
class Errors:
    """Counting errors on scenes, in people, and ``relative``: the mean of |error| / heads."""

    shape: tuple[int, int]
    scenes: int
    mae: float
    rmse: float
    bias: float
    relative: float


def errors_on(counter: Counter, samples: Iterable[Sample], shape: tuple[int, int]) -> Errors:
    """Errors of a counter on scenes of one shape, each with at least one head."""
    pairs = [(float(sample.count), count_of(counter, sample)) for sample in samples]
    truth, counts = zip(*pairs, strict=True)
    relative = float(np.mean([abs(count - heads) / heads for heads, count in pairs]))
    return Errors(
        shape=shape,
        scenes=len(pairs),
        mae=metrics.mae(truth, counts),
        rmse=metrics.rmse(truth, counts),
        bias=metrics.bias(truth, counts),
        relative=relative,
    )


def errors_on_test(counter: Counter, seed: int, share: float = 1.0) -> list[Errors]:
    """Errors on the test scenes of each size (or the first ones, a ``share`` of them)."""
    tables = []
    for shape, count in TESTS:
        samples = Scenes(split="test", seed=seed, shape=shape, count=max(1, round(share * count)))
        tables.append(errors_on(counter, samples, shape))
    return tables


def main(argv: Sequence[str] | None = None) -> None:
    """Render, train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--cache", type=Path, default=Path("runs/scenes"), help="rendered scenes")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("--seed", type=int, default=0, help="key of scenes and training")
    parser.add_argument("--scenes", type=int, default=2000 + VALIDATION, help="training scenes")
    parser.add_argument("--epochs", type=int, default=None, help="default: the recipe's")
    parser.add_argument("--test-share", type=float, default=1.0, help="share of the test scenes")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    given = parser.parse_args(argv)
    if given.scenes <= VALIDATION:
        parser.error(f"--scenes must be above the {VALIDATION} that validate, got {given.scenes}")
    torch.set_num_threads(given.threads)
    samples = RenderedScenes(given.cache, given.scenes, given.seed)
    samples.render()
    counter = SceneMCNN(given.seed)
    config = train.TrainConfig(epochs=given.epochs, amp=True, cache=4.0)
    progress = TerminalProgress("batches")
    done = train.fit(
        counter, samples, config, seed=given.seed, out=given.out, resume=given.resume,
        held=range(given.scenes - VALIDATION, given.scenes), progress=progress,
    )  # fmt: skip
    progress.close()
    tables = [asdict(table) for table in errors_on_test(counter, given.seed, given.test_share)]
    published = counter.reading("gray255")
    assert published is not None
    metadata = {
        **done.metadata, "data": "pycc.data.synthetic", "shapes": SHAPES, "test": tables,
        "threads": given.threads,
    }  # fmt: skip
    models.save(published, given.out / WEIGHTS, metadata=metadata)
    for table in tables:
        print(
            f"{table['shape'][0]}x{table['shape'][1]}: {table['scenes']} test scenes, MAE "
            f"{table['mae']:.1f}, RMSE {table['rmse']:.1f}, bias {table['bias']:+.1f}, relative "
            f"{100 * table['relative']:.1f} %",
            flush=True,
        )


if __name__ == "__main__":
    main()
