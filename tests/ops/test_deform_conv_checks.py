"""What deform_conv refuses, and what it registers with torch."""

from __future__ import annotations

import warnings

import pytest
import torch
from support.tensors import noise
from torch import Tensor
from torch.autograd import forward_ad

from pycc.ops import deform_conv, deform_conv_reference


def problem() -> dict[str, Tensor]:
    return {
        "x": noise(2, 3, 6, 5),
        "offset": 6.0 * noise(2, 18, 6, 5, seed=1) - 3.0,
        "weight": noise(2, 3, 3, 3, seed=2),
    }


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": noise(3, 6, 5)}, ValueError, r"x must be \[N,C,H,W\], got \[3, 6, 5\]"),
        ({"x": [1.0]}, TypeError, r"x must be a tensor \[N,C,H,W\], got list"),
        ({"x": noise(2, 3, 6, 5).half()}, ValueError, "x must be float32.*, got float16"),
        ({"x": noise(2, 3, 6, 5).to_sparse()}, ValueError, "x must be a dense tensor"),
        ({"offset": noise(2, 9, 6, 5)}, ValueError, r"offset must be \[2,18,6,5\] \(down, right\)"),
        ({"offset": noise(2, 18, 5, 6)}, ValueError, r"offset must be .*, got \[2, 18, 5, 6\]"),
        ({"offset": noise(1, 18, 6, 5)}, ValueError, r"offset must be \[2,18,6,5\]"),
        ({"offset": noise(2, 18, 6, 5).double()}, ValueError, "offset must be float32, got"),
        ({"offset": None}, TypeError, "offset must be a tensor .*, got NoneType"),
        ({"weight": noise(2, 4, 3, 3)}, ValueError, r"weight must be \[O,3,3,3\], got"),
        ({"weight": noise(2, 3, 5, 5)}, ValueError, r"weight must be \[O,3,3,3\]"),
        ({"weight": noise(2, 3, 3, 3).to("meta")}, ValueError, "weight must be on the device of x"),
    ],
)
@pytest.mark.parametrize("op", [deform_conv, deform_conv_reference])
def test_bad_arguments(op, change, error, message) -> None:
    with pytest.raises(error, match=f"deform_conv: {message}"):
        op(**{**problem(), **change})


@pytest.mark.compiled
def test_registration(device: torch.device) -> None:
    arguments = {name: tensor.to(device) for name, tensor in problem().items()}
    grad = noise(2, 2, 6, 5, seed=9).to(device)
    x, offset, weight = arguments.values()
    ops = torch.ops.pycc
    leaves = tuple(tensor.clone().requires_grad_() for tensor in arguments.values())
    gradients = (
        (ops.deform_conv_grad_x, (grad, offset, weight)),
        (ops.deform_conv_grad_offset, (grad, x, offset, weight)),
        (ops.deform_conv_grad_weight, (grad, x, offset)),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, from inside opcheck
        torch.library.opcheck(ops.deform_conv.default, leaves)
        for op, inputs in gradients:  # which have no gradients themselves
            torch.library.opcheck(op.default, inputs, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.compiled
def test_the_registered_ops_check_before_they_hand_out_pointers() -> None:
    x, offset, weight = problem().values()
    grad, ops = noise(2, 2, 6, 5), torch.ops.pycc
    for op, inputs, message in (
        (ops.deform_conv, (x.double(), offset, weight), "x must be float32, got float64"),
        (ops.deform_conv, (x, offset[:1], weight), "offset must be"),
        (ops.deform_conv, (x, offset, weight[:, :2]), "weight must be"),
        (ops.deform_conv, (x, offset, weight.half()), "weight must be float32"),
        (ops.deform_conv_grad_x, (grad[:, :1], offset, weight), "weight must be"),
        (ops.deform_conv_grad_x, (grad[..., 1:], offset, weight), "offset must be"),
        (ops.deform_conv_grad_x, (grad.double(), offset, weight), "grad must be float32"),
        (ops.deform_conv_grad_offset, (grad[:1], x, offset, weight), "offset must be"),
        (ops.deform_conv_grad_offset, (grad, x[:, :2], offset, weight), "weight must be"),
        (ops.deform_conv_grad_offset, (grad, x[:, 0], offset, weight), "x must be"),
        (ops.deform_conv_grad_weight, (grad, x[:1], offset), "offset must be"),
        (ops.deform_conv_grad_weight, (grad[0], x, offset), "grad must be"),
        (ops.deform_conv_grad_weight, (grad, x, offset.to("meta")), "one device, got cpu and meta"),
    ):
        with pytest.raises(ValueError, match=f"deform_conv: .*{message}"):
            op(*inputs)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own, in jvp
@pytest.mark.parametrize("name", ["x", "offset", "weight"])
@pytest.mark.compiled
def test_forward_mode_derivatives_are_refused(name: str) -> None:
    arguments = problem()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(arguments[name], torch.ones_like(arguments[name]))
        with pytest.raises(ValueError, match="forward-mode derivatives are not supported"):
            deform_conv(**{**arguments, name: dual})
