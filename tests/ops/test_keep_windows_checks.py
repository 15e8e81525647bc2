"""What keep_windows refuses, and what it registers with torch."""

from __future__ import annotations

import warnings

import pytest
import torch
from support.tensors import negated, noise
from torch import Tensor
from torch.autograd import forward_ad

from pycc.ops import keep_windows, keep_windows_reference

BOTH = pytest.mark.parametrize("op", [keep_windows, keep_windows_reference])


PLACE = torch.tensor([[0, 0], [3, 5]])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": 1.0}, TypeError, r"images must be a tensor \[N,C,H,W\], got float"),
        ({"images": noise(3, 8, 9)}, ValueError, r"images must be \[N,C,H,W\], got \[3, 8, 9\]"),
        ({"images": noise(2, 3, 8, 9).half()}, ValueError, "images must be float32.*, got float16"),
        ({"images": noise(2, 3, 8, 9).to("meta")}, ValueError, "top_left must be on the device"),
        ({"top_left": [0, 0]}, TypeError, r"top_left must be a tensor \[M,2\]"),
        ({"top_left": PLACE[0]}, ValueError, r"top_left must be \[M,2\] \(y, x\), got \[2\]"),
        ({"top_left": torch.zeros(2, 3)}, ValueError, r"top_left must be \[M,2\]"),
        ({"top_left": PLACE.float()}, ValueError, "top_left must be int64 or int32, got float32"),
        ({"top_left": PLACE.to("meta")}, ValueError, "top_left must be on the device of images"),
        ({"window": 4}, TypeError, r"window must be \(h, w\), got int"),
        ({"window": (4, 4, 4)}, ValueError, r"window must be \(h, w\), got \[4, 4, 4\]"),
        ({"window": (4, 2.0)}, TypeError, r"window\[1\] must be an int, got float"),
        ({"window": (-1, 4)}, ValueError, r"window\[0\] must be within \[0, 9\], got -1"),
        ({"window": (9, 4)}, ValueError, r"window must be \(h, w\) within \(8, 9\), got \[9, 4\]"),
        ({"window": (8, 10)}, ValueError, r"window\[1\] must be within \[0, 9\], got 10"),
        ({"fill": "grey"}, TypeError, "fill must be a number, got str"),
        ({"fill": float("nan")}, ValueError, "fill must be within"),
        ({"fill": torch.zeros(2)}, ValueError, r"fill must be a number or \[3\]"),
        ({"fill": torch.zeros(3).double()}, ValueError, "fill must be float32"),
        ({"fill": torch.zeros(3, device="meta")}, ValueError, "fill must be on the device"),
        ({"fill": torch.zeros(3).requires_grad_()}, ValueError, "fill must not require a gradient"),
        ({"out": torch.zeros(2, 3, 8, 9)}, ValueError, r"out must be \[4, 3, 8, 9\]"),
        ({"out": torch.zeros(4, 3, 8, 9).double()}, ValueError, "out must be float32"),
        ({"out": torch.zeros(4, 3, 9, 8).transpose(2, 3)}, ValueError, "out must be contiguous"),
        ({"out": torch.zeros(4, 3, 8, 9).requires_grad_()}, ValueError, "out must not require"),
        ({"out": torch.zeros(4, 3, 8, 9, device="meta")}, ValueError, "out must be on the device"),
        ({"out": negated(torch.zeros(4, 3, 8, 9))}, ValueError, "out must hold its values"),
        ({"images": torch.tensor(1.0)}, ValueError, r"images must be \[N,C,H,W\], got \[\]"),
        ({"top_left": torch.tensor(1)}, ValueError, r"top_left must be \[M,2\] .*, got \[\]"),
    ],
)
@BOTH
def test_bad_arguments_change_nothing(op, change, error, message) -> None:
    arguments = {
        "images": noise(2, 3, 8, 9),
        "top_left": PLACE,
        "window": (4, 4),
        "fill": 0.5,
        "out": torch.zeros(4, 3, 8, 9),
    }
    arguments.update(change)
    with pytest.raises(error, match=f"keep_windows: {message}"):
        op(**arguments)
    assert arguments["out"].is_meta or not arguments["out"].any()


@BOTH
def test_out_may_not_overlap_what_is_read(op) -> None:
    memory = noise(3, 1, 4, 4)
    with pytest.raises(ValueError, match="keep_windows: out must not overlap images"):
        op(memory[:2], PLACE[:1], (2, 2), fill=0.5, out=memory[1:])
    with pytest.raises(ValueError, match="keep_windows: out must not overlap fill"):
        op(noise(2, 1, 4, 4), PLACE[:1], (2, 2), fill=memory[1, 0, 0, :1], out=memory[1:])
    places = memory[1, 0].view(torch.int64)[:1]
    with pytest.raises(ValueError, match="keep_windows: out must not overlap top_left"):
        op(noise(2, 1, 4, 4), places, (2, 2), fill=0.5, out=memory[1:])


@pytest.mark.compiled
def test_registration(device: torch.device) -> None:
    images, places = noise(2, 3, 8, 9).to(device), PLACE.to(device)
    transposed = images.transpose(2, 3).contiguous().transpose(2, 3)
    colour = torch.zeros(3, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, from inside opcheck
        for leaf in (images.requires_grad_(), transposed.requires_grad_()):
            arguments = (leaf, places, colour, 4, 5)
            torch.library.opcheck(torch.ops.pycc.keep_windows.default, arguments)
        grad = noise(4, 3, 8, 9, seed=1).to(device).requires_grad_()
        torch.library.opcheck(torch.ops.pycc.keep_windows_backward.default, (grad, places, 2, 4, 5))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("", (noise(2, 3, 8, 9).double(), PLACE, noise(3), 4, 4), "images must be float32"),
        ("", (noise(2, 3, 8, 9), PLACE.int(), noise(3), 4, 4), "top_left must be int64"),
        ("", (noise(2, 3, 8, 9), PLACE.T[:, :1], noise(3), 4, 4), "top_left must be"),
        ("", (noise(2, 3, 8, 9), PLACE, noise(2), 4, 4), "fill must be"),
        ("", (noise(2, 3, 8, 9), PLACE, noise(3).to("meta"), 4, 4), "on one device, got cpu and"),
        ("", (noise(2, 3, 8, 9), PLACE.to("meta"), noise(3), 4, 4), "on one device, got cpu and"),
        ("", (torch.tensor(1.0), PLACE, noise(3), 4, 4), r"images must be .*, got \[\]"),
        ("", (noise(2, 3, 8, 9), torch.tensor(1), noise(3), 4, 4), r"top_left must be .*, got"),
        ("", (noise(2, 3, 8, 9), PLACE, noise(3), 9, 4), "window must be"),
        ("", (noise(2, 3, 8, 9), PLACE, noise(3), 4, -1), "window"),
        ("_backward", (noise(3, 3, 8, 9), PLACE, 2, 4, 4), "grad must have 2 x 2 rows"),
        ("_backward", (noise(4, 3, 8, 9), PLACE, -1, 4, 4), "images must be within"),
        ("_backward", (noise(4, 3, 8, 9), PLACE, 2, 4, 10), "window"),
        ("_backward", (noise(4, 3, 8), PLACE, 2, 4, 4), "grad must be"),
        ("_backward", (torch.tensor(1.0), PLACE, 2, 4, 4), "grad must be"),
        ("_backward", (noise(4, 3, 8, 9), PLACE.to("meta"), 2, 4, 4), "on one device, got cpu and"),
    ],
)
@pytest.mark.compiled
def test_the_registered_ops_check_before_they_hand_out_pointers(name, arguments, message) -> None:
    with pytest.raises(ValueError, match=f"keep_windows: .*{message}"):
        getattr(torch.ops.pycc, f"keep_windows{name}")(*arguments)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, from torch.func
@pytest.mark.parametrize("into", [False, True])
@pytest.mark.compiled
def test_forward_mode_is_refused(into: bool) -> None:
    """Its tangents would silently be zero."""
    images = noise(2, 3, 8, 9)

    def function(images: Tensor) -> Tensor:
        out = torch.empty(4, 3, 8, 9) if into else None
        return keep_windows(images, PLACE, (4, 4), fill=0.5, out=out)

    with pytest.raises(ValueError, match="keep_windows: forward-mode derivatives"):
        torch.func.jvp(function, (images,), (images,))
    with forward_ad.dual_level():
        with pytest.raises(ValueError, match="keep_windows: forward-mode derivatives"):
            function(forward_ad.make_dual(images, images))
        assert torch.equal(
            function(images), keep_windows_reference(images, PLACE, (4, 4), fill=0.5)
        )
