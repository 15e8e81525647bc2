"""What ablate and ablation_indices refuse, before anything is written."""

from __future__ import annotations

import pytest
import torch
from support.tensors import noise
from torch import Tensor
from torch.autograd import forward_ad

from pycc.ops import (
    ablate,
    ablate_reference,
    ablation_indices,
    ablation_indices_reference,
)

IMAGES = noise(2, 3, 8, 8)


@pytest.mark.parametrize("op", [ablate, ablate_reference])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": [1.0]}, TypeError, "images must be a tensor"),
        ({"images": IMAGES[0]}, ValueError, r"images must be \[N,C,H,W\], got \[3, 8, 8\]"),
        ({"images": IMAGES.half()}, ValueError, "images must be float32"),
        ({"images": IMAGES.to_sparse()}, ValueError, "images must be a dense tensor"),
        ({"k": 65}, ValueError, r"k must be within \[0, 64\], got 65"),
        ({"k": -1}, ValueError, r"k must be within \[0, 64\], got -1"),
        ({"k": 193, "unit": "element"}, ValueError, r"within \[0, 192\]"),
        ({"k": 1.0}, TypeError, "k must be an int, got float"),
        ({"k": True}, TypeError, "k must be an int, got bool"),
        ({"seed": 2**64}, ValueError, "seed must be within"),
        ({"seed": None}, TypeError, "seed must be an int"),
        ({"fill": float("nan")}, ValueError, "fill must be within"),
        ({"fill": 1e39}, ValueError, "fill must be within"),
        ({"fill": "mean"}, TypeError, "fill must be a number"),
        ({"fill": torch.zeros(2)}, ValueError, r"fill must be a number or \[3\]"),
        ({"fill": torch.zeros(3).double()}, ValueError, "fill must be float32"),
        ({"fill": torch.zeros(3, device="meta")}, ValueError, "fill must be on the device of"),
        ({"fill": torch.zeros(3, requires_grad=True)}, ValueError, "must not require a gradient"),
        ({"draws": 0}, ValueError, "draws must be within"),
        ({"images": None}, TypeError, "images must be a tensor"),
        ({"unit": torch.ones(2)}, TypeError, "unit must be a string, got Tensor"),
        ({"out": torch._neg_view(torch.empty(2, 3, 8, 8))}, ValueError, "lazily negated view"),
        ({"unit": "pixels"}, ValueError, "unit must be one of 'pixel', 'element'"),
        ({"first_image": 2**32 - 1}, ValueError, "first_image must be within"),
        ({"first_draw": -1}, ValueError, "first_draw must be within"),
        ({"first_draw": 2**32 - 1, "draws": 2}, ValueError, "first_draw must be within"),
        ({"out": torch.empty(2, 3, 8, 9)}, ValueError, "out must be"),
        ({"out": torch.empty(2, 3, 8, 8), "draws": 2}, ValueError, r"out must be \[4, 3, 8, 8\]"),
        ({"out": torch.empty(2, 3, 8, 8).double()}, ValueError, "out must be float32"),
        ({"out": torch.empty(2, 3, 8, 8).transpose(2, 3)}, ValueError, "out must be contiguous"),
        ({"out": torch.empty(2, 3, 8, 8, device="meta")}, ValueError, "out must be on the device"),
        ({"out": IMAGES}, ValueError, "out must not overlap images"),
        ({"out": torch.empty(2, 3, 8, 8).requires_grad_()}, ValueError, "out must not require"),
    ],
)
def test_bad_input_is_refused(op, change, error, message: str) -> None:
    before = IMAGES.clone()
    with pytest.raises(error, match=message) as caught:
        op(**{"images": IMAGES, "k": 5, "seed": 0, "fill": 0.0, **change})
    assert str(caught.value).startswith("ablate: ")
    assert torch.equal(IMAGES, before)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("op", [ablate, ablate_reference])
def test_nested_images_are_refused(op) -> None:
    with pytest.raises(ValueError, match="got a nested tensor"):
        op(torch.nested.nested_tensor([torch.ones(3, 8, 8)]), 5, seed=0, fill=0.0)


@pytest.mark.parametrize("op", [ablation_indices, ablation_indices_reference])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"size": 2**32 + 1}, ValueError, "size must be within"),
        ({"size": -1}, ValueError, "size must be within"),
        ({"size": 10.0}, TypeError, "size must be an int"),
        ({"k": 11}, ValueError, r"k must be within \[0, 10\], got 11"),
        ({"seed": 0.5}, TypeError, "seed must be an int"),
        ({"image": 2**32}, ValueError, "image must be within"),
        ({"device": "gpu"}, ValueError, "device must be cpu or cuda, got 'gpu'"),
        ({"device": "meta"}, ValueError, "device must be cpu or cuda, got 'meta'"),
        ({"device": "cuda:99"}, ValueError, "device cuda:99 does not exist"),
        ({"device": 0}, TypeError, "device must be a name, got int"),
        ({"draw": -1}, ValueError, "draw must be within"),
    ],
)
def test_bad_keys_are_refused(op, change, error, message: str) -> None:
    with pytest.raises(error, match=f"ablation_indices: {message}"):
        op(**{"size": 10, "k": 5, "seed": 0, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": IMAGES.double()}, "images must be float32"),
        ({"fill": torch.zeros(2)}, "fill must be"),
        ({"images": torch.zeros(3)}, "images must be"),
        ({"images": IMAGES.to_sparse()}, "images must be a dense tensor"),
        ({"fill": torch.zeros(3, device="meta")}, "must be on one device, got cpu and meta"),
        ({"k": 65}, "k must be within"),
        ({"draws": 0}, "draws must be within"),
        ({"draws": -1}, "draws must be within"),
        ({"first_image": 2**32}, "first_image must be within"),
        ({"first_image": 2**63 - 1}, "first_image must be within"),
        ({"first_draw": -1}, "first_draw must be within"),
    ],
)
@pytest.mark.compiled
def test_the_registered_op_checks_before_it_hands_out_pointers(change, message: str) -> None:
    arguments = {
        "images": IMAGES,
        "fill": torch.zeros(3),
        "k": 5,
        "seed": 0,
        "first_image": 0,
        "draws": 1,
        "first_draw": 0,
        "by_element": False,
    }
    torch.ops.pycc.ablate(**arguments)
    with pytest.raises(ValueError, match=message):
        torch.ops.pycc.ablate(**{**arguments, **change})
    with pytest.raises(ValueError, match="grad must have 2 rows per image, got 3 rows"):
        torch.ops.pycc.ablate_backward(noise(3, 1, 4, 4), 5, 0, 0, 2, 0, False)


def test_more_pixels_than_32_bits_number_are_refused() -> None:
    images = torch.zeros(1).expand(1, 1, 2**17, 2**16)
    with pytest.raises(ValueError, match=r"at most 2\^32 pixels, got 8589934592"):
        ablate(images, 5, seed=0, fill=0.0)


def test_out_must_not_overlap_fill() -> None:
    memory = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match="out must not overlap fill"):
        ablate(IMAGES, 5, seed=0, fill=memory[0, 0, 0, :3], out=memory)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
@pytest.mark.compiled
def test_forward_mode_is_refused() -> None:
    """Its tangents would silently be zero."""

    def function(images: Tensor) -> Tensor:
        return ablate(images, 5, seed=0, fill=0.0)

    with pytest.raises(ValueError, match="ablate: forward-mode derivatives"):
        torch.func.jvp(function, (IMAGES,), (IMAGES,))
    with forward_ad.dual_level(), pytest.raises(ValueError, match="forward-mode derivatives"):
        function(forward_ad.make_dual(IMAGES, IMAGES))
    with forward_ad.dual_level():
        assert torch.equal(function(IMAGES), ablate_reference(IMAGES, 5, seed=0, fill=0.0))


def test_memory_that_begins_between_two_floats() -> None:
    def between(count: int) -> Tensor:
        memory = bytearray(4 * count + 1)
        return torch.frombuffer(memory, dtype=torch.float32, offset=1, count=count)

    images = between(IMAGES.numel()).view(IMAGES.shape).copy_(IMAGES)
    assert images.data_ptr() % 4 == 1
    expected = ablate(IMAGES, 5, seed=0, fill=0.0)
    assert torch.equal(ablate(images, 5, seed=0, fill=0.0), expected)
    with pytest.raises(ValueError, match="out must begin at a multiple of 4 bytes"):
        ablate(IMAGES, 5, seed=0, fill=0.0, out=between(expected.numel()).view(expected.shape))
