"""One white-box attack on every counter: gradients, time of a step and of the whole image.

    python bench/models.py [--data PATH] [--only NAME ...] [--no-store]

The table shows whether the gradient reaches every pixel of the patch, the cost of a step, how many
times longer the same step takes if the whole image is computed (forward and backward pass, measured
in turn, after values and gradients were compared in double precision), and the peak memory beyond
the loaded counter. MCNN has the built-in weights. All others have random ones, determined by each
entry's published name as in the fixtures: their counts are left out, since they have no meaning.
Every counter runs in a separate process. Results are stored as they come; rows of counters that are
not measured stay.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import statistics
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from timer import RESULTS, commit, machine
from torch import Tensor

from pycc import attack, data, models
from pycc.attack.evaluation.builder import CleanCounts, Member, ProblemBuilder
from pycc.attack.evaluation.checked import SampleCache, check_samples
from pycc.local import Box, Local
from pycc.models.base import CounterModel
from pycc.types import Sample

SHAPE = (768, 1024)
SIDE, STEPS, TURNS = 81, 5, 2
CHECKED = (384, 512)
TOLERANCE = 1e-6
"""Of values and gradients in double precision, relative, on an image of the checked size."""
FAMILIES: tuple[tuple[str, dict[str, object]], ...] = (
    ("mcnn", {}),
    ("cmtl", {}),
    ("csrnet", {}),
    ("csrnet", {"variant": "commissarma"}),
    ("can", {}),
    ("can", {"variant": "weizheliu"}),
    ("danet", {}),
    ("clip_ebc", {}),
    ("clip_ebc", {"backbone": "vgg19"}),
    ("clip_ebc", {"backbone": "vit_b_16"}),
    ("p2pnet", {}),
    ("fidtm", {}),
    ("steerer", {}),
    ("zip", {}),
    ("zip", {"variant": "n"}),
    ("zip", {"variant": "t"}),
    ("vgg19", {}),
    ("vgg19", {"variant": "dm_count"}),
    ("vgg19", {"variant": "generalized_loss"}),
    ("mask_aware", {}),
    ("mask_aware", {"backbone": "csr"}),
    ("sfanet", {}),
    ("sfanet", {"variant": "m_sfanet"}),
    ("sfanet", {"variant": "m_sfanet_qnrf"}),
)
WEIGHTS = {"mcnn": "mcnn-synthetic"}
"""Built-in weights; the other models have random ones."""
PREFIXES = {"mcnn": "DME.", "cmtl": "CCN.", "danet": "fine."}
FACTORS = {
    **{"offsets4": 0.005, "offsets5": 0.004, "offsets6": 0.004, "offsets7": 0.008},
    **{"bin_head": 1e-6, "pi_head.": 1e-6},
}
"""Factors that limit DA-Net's offsets to about one cell, as in the fixtures, and ZIP's logits, of
which a softmax would have no slope."""
LIVE = ("density_layer.0.weight",)
"""Weights without their sign, with which a last ReLU of a random network is 0 everywhere."""


@dataclass(frozen=True)
class Result:
    """The measurements of one counter."""

    model: str
    options: dict[str, object]
    parameters: int
    whole_layers: int | None
    """Layers that are computed whole; None if the counter is."""
    seconds_a_step: float
    whole_image: float
    """How many times longer the step takes on the whole image."""
    megabytes: float
    clean: float | None
    """None for random weights, whose counts have no meaning."""
    attacked: float | None
    without_gradient: float
    """Share of the patch's pixels whose first gradient is exactly 0."""


@torch.no_grad()
def draw(counter: CounterModel) -> None:
    """Fill every entry of the network's state by the rule of the fixtures."""
    for name, tensor in counter.net.state_dict().items():
        if not tensor.is_floating_point():
            continue
        key = PREFIXES.get(counter.name, "") + name
        generator = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
        normal = generator.standard_normal(tuple(tensor.shape))
        if name in ("logit_scale", "bin_centers"):
            continue
        if tensor.ndim >= 2:
            value = normal * np.sqrt(2 / np.prod(tensor.shape[1:])) * FACTORS.get(name[:8], 1.0)
            value = np.abs(value) if name in LIVE else value
        elif name.endswith("running_mean"):
            value = 0.1 * normal
        elif name.endswith("running_var"):
            value = 1 + 0.1 * np.abs(normal)
        elif name.endswith("bias"):
            value = 0.01 * normal
        elif tensor.shape == (1,) and counter.name == "cmtl":
            value = np.full(1, 0.25)  # a PReLU's slope
        else:
            value = 1 + 0.1 * normal
        tensor.copy_(torch.from_numpy(np.asarray(value)))


def status(name: str) -> int:
    """Return an entry of Linux's /proc/self/status for this process, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def restart_peak() -> int:
    """Reset the peak memory use of this process; return the present use in kB."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


@dataclass(frozen=True)
class Step:
    """One step of the same attack, and the gradient of its patch."""

    seconds: float
    values: Tensor
    slope: Tensor


def both(counter: CounterModel, image: Tensor) -> tuple[Step, Step]:
    """Do the same step, forward and backward, on the whole image and locally."""
    top, left = ((side - SIDE) // 2 for side in image.shape[-2:])
    local = Local(counter, image, Box(top, left, top + SIDE, left + SIDE))
    patch = torch.rand(1, 3, *local.box.shape, generator=torch.Generator().manual_seed(0))

    def whole(pixels: Tensor) -> Tensor:
        attacked = image.clone()
        attacked[..., *local.box.slices] = pixels
        cells: Tensor = counter(attacked)[..., *local.cells.slices]
        return cells

    def step(cells: Callable[[Tensor], Tensor]) -> Step:
        pixels = patch.to(image.dtype, copy=True).requires_grad_()
        start = time.perf_counter()
        values = cells(pixels)
        (slope,) = torch.autograd.grad(values.square().sum(), pixels)
        return Step(time.perf_counter() - start, values.detach(), slope)

    return step(whole), step(local)


def check(counter: CounterModel, image: Tensor) -> None:
    """Raise AssertionError unless both steps agree in double precision."""
    top, left = ((side - part) // 2 for side, part in zip(SHAPE, CHECKED, strict=True))
    middle = image[..., top : top + CHECKED[0], left : left + CHECKED[1]]
    whole, local = both(copy.deepcopy(counter).double(), middle.double())
    for wanted, got in ((whole.values, local.values), (whole.slope, local.slope)):
        assert torch.all((got - wanted).norm() <= TOLERANCE * wanted.norm())


def whole_image(counter: CounterModel, image: Tensor) -> float:
    """Time a step on the whole image and locally; return the ratio of the shortest times."""
    check(counter, image)
    turns = [both(counter, image) for _ in range(TURNS)]
    return min(whole.seconds for whole, _ in turns) / min(local.seconds for _, local in turns)


def measure(name: str, options: dict[str, object], sample: Sample) -> Result:
    trained = WEIGHTS.get(name)
    counter = models.create(name, **options) if trained is None else models.load(trained)
    if trained is None:
        draw(counter)
    counter.eval().requires_grad_(False)
    apam = attack.APAM(
        patch_size=SIDE, steps=STEPS, objective="over", step_size=0.1, transform="none"
    )
    checked = check_samples([sample], [apam], counter.stride, seed=0)
    member, cache, clean = Member(counter), SampleCache([sample]), CleanCounts()
    builder = ProblemBuilder([member], cache, clean)
    (item,) = checked.items
    before = restart_peak()
    problem = builder.problem(apam, [item], [apam.place(item.shape, seed=0, image=0)])
    moments = [time.perf_counter()]
    done = apam.optimise(problem, seed=0, step_done=lambda _: moments.append(time.perf_counter()))
    peak = status("VmHWM")
    gaps = [after - start for start, after in pairwise(moments[1:])]
    counts: tuple[float | None, float | None] = (None, None)
    if trained is not None:
        added = float(problem.added(done.patches, apam.patch_mask(problem.side))[0])
        count, _ = clean(member, item, cache)
        counts = (count, count + added)
    local = problem.regions[0].local
    assert isinstance(local, Local)
    ratio = whole_image(counter, sample.image[None])
    parameters = sum(parameter.numel() for parameter in counter.net.parameters())
    return Result(
        name, options, parameters, local.whole_layers, statistics.median(gaps), ratio,
        (peak - before) / 1024, *counts, done.zero_gradient[0],
    )  # fmt: skip


def store(sample: Sample, result: Result) -> None:
    """Replace the result of one counter in the stored ones of the same image."""
    path = RESULTS / "models-cpu.json"
    content = {
        "commit": commit(), "machine": machine(), "torch": torch.__version__,
        "image": sample.name, "shape": list(sample.image.shape[1:]), "side": SIDE, "steps": STEPS,
    }  # fmt: skip
    known = json.loads(path.read_text()) if path.exists() else {}
    same = all(known.get(key) == content[key] for key in ("machine", "shape", "side", "steps"))
    rows = {(row["model"], str(row["options"])): row for row in (known["rows"] if same else [])}
    rows[result.model, str(result.options)] = asdict(result)
    order = [(name, str(settings)) for name, settings in FAMILIES]
    content["rows"] = [rows[key] for key in order if key in rows]
    path.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="use a test image of this data set, not a built-in scene")
    parser.add_argument("--index", type=int, default=0, help="index of the test image")
    parser.add_argument("--only", nargs="+", help="run these models only")
    parser.add_argument("--no-store", action="store_true")
    options = parser.parse_args()
    scenes = (
        data.open("synthetic", split="test", shape=SHAPE)
        if options.data is None
        else data.open(options.data, split="test")
    )
    sample = scenes[options.index]
    chosen = [f for f in FAMILIES if options.only is None or f[0] in options.only]
    print(f"{sample.name}, {sample.image.shape[1]}x{sample.image.shape[2]}, patch {SIDE}")
    print(
        "| counter | parameters | step | whole image | memory | evaluates | clean -> attacked | "
        "no gradient |"
    )
    print("|---|---|---|---|---|---|---|---|")
    context = multiprocessing.get_context("spawn")
    for name, settings in chosen:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            result = pool.submit(measure, name, settings, sample).result()
        if not options.no_store:
            store(sample, result)
        label = " ".join([name, *map(str, settings.values())])
        counts = "-"
        if result.clean is not None:
            counts = f"{result.clean:,.1f} -> {result.attacked:,.1f}"
        way = {None: "image", 0: "changed cells"}.get(result.whole_layers, "whole from some layer")
        print(
            f"| {label} | {result.parameters:,} | {1e3 * result.seconds_a_step:,.0f} ms | "
            f"{result.whole_image:.2f} x | {result.megabytes:,.0f} MB | {way} | {counts} | "
            f"{100 * result.without_gradient:.1f} % |",
            flush=True,
        )


if __name__ == "__main__":
    main()
