"""Kernels inside torch.compile: one graph, whatever the counter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pycc import models
from pycc.ops import ablate

pytestmark = pytest.mark.compiled

INDUCTOR = pytest.param(
    "inductor",
    # torch's own, from inside the compiler
    marks=[pytest.mark.long, pytest.mark.filterwarnings("ignore::DeprecationWarning")],
)


@pytest.mark.long
@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
def test_ablation_counter_and_sum_compile_into_one_graph(backend: str, device) -> None:
    counter = models.load("mcnn-synthetic").eval().to(device)

    def count(images: Tensor, draw: int) -> Tensor:
        return counter(ablate(images, 500, seed=3, fill=0.5, draws=2, first_draw=draw)).sum()

    torch._dynamo.reset()
    compiled = torch.compile(count, fullgraph=True, backend=backend)
    images = torch.rand(1, 3, 64, 80, generator=torch.Generator().manual_seed(0)).to(device)
    for draw in (0, 2, 5):  # from the second on, the draw is symbolic
        results = []
        for function in (count, compiled):
            leaf = images.clone().requires_grad_()
            total = function(leaf, draw)
            total.backward()
            results.append((total.detach(), leaf.grad))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
