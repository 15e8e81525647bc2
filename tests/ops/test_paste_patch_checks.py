"""What paste_patch refuses, and what it registers with torch."""

from __future__ import annotations

import warnings

import pytest
import torch
from support.tensors import noise
from torch import Tensor
from torch.autograd import forward_ad

from pycc.ops import paste_patch, paste_patch_reference

PLACE = torch.zeros(2, 2, dtype=torch.long)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch means to remove them
    QUANTISED = torch.quantize_per_tensor(torch.ones(4, 4), 1.0, 0, torch.quint8)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": noise(3, 8, 8)}, ValueError, r"images must be \[N,C,H,W\], got \[3, 8, 8\]"),
        ({"images": noise(2, 3, 8, 8).half()}, ValueError, "images must be float32.*, got float16"),
        ({"images": [1.0]}, TypeError, r"images must be a tensor \[N,C,H,W\], got list"),
        ({"patch": noise(3, 4, 4).to_sparse()}, ValueError, "patch must be a dense tensor"),
        ({"patch": noise(1, 4, 4)}, ValueError, r"patch must be \[3,p,q\] or \[2,3,p,q\]"),
        ({"patch": noise(3, 3, 4, 4)}, ValueError, "patch must be"),
        ({"patch": noise(3, 4, 4).double()}, ValueError, "patch must be float32"),
        ({"patch": 1.0}, TypeError, "patch must be a tensor"),
        ({"top_left": PLACE[:1]}, ValueError, r"top_left must be \[2,2\] \(y, x\), got \[1, 2\]"),
        ({"top_left": PLACE.float()}, ValueError, "top_left must be int64 or int32, got float32"),
        (
            {"top_left": PLACE + (1 << 40)},
            ValueError,
            "top_left must be within .*, got 1099511627776",
        ),
        ({"mask": torch.ones(4, 5)}, ValueError, r"mask must be \[4, 4\] like the patch"),
        ({"mask": torch.full((4, 4), 0.5)}, ValueError, "mask must hold 0 and 1 only, got 0.5"),
        ({"mask": torch.eye(4) - 1}, ValueError, "mask must hold 0 and 1 only, got -1"),
        ({"mask": torch.eye(4).long() * 7}, ValueError, "mask must hold 0 and 1 only, got 7"),
        ({"mask": torch.eye(4) * float("nan")}, ValueError, "mask must hold 0 and 1 only, got nan"),
        ({"mask": torch.eye(4) + 0j}, ValueError, "mask must be bool or .*, got complex64"),
        ({"mask": QUANTISED}, ValueError, "mask must be bool or .*, got quint8"),
        ({"mask": "disc"}, TypeError, "mask must be a tensor .*, got str"),
        ({"top_left": PLACE - 2**63}, ValueError, "top_left must be within .*, got -9223372036854"),
        ({"top_left": PLACE.to("meta")}, ValueError, "top_left must hold values"),
        ({"patch": noise(3, 4, 4).to("meta")}, ValueError, "patch must be on the device"),
        ({"mask": torch.ones(4, 4, device="meta")}, ValueError, "mask must be on the device"),
        ({"zoom": 0.0}, ValueError, r"zoom must be within \[0.001, 1000\], got 0"),
        ({"zoom": 1001}, ValueError, r"zoom must be within \[0.001, 1000\], got 1001"),
        ({"angle": "left"}, TypeError, "angle must be a number, got str"),
        ({"angle": 10**400}, ValueError, "angle must be within"),
        ({"angle": torch.zeros(2, device="meta")}, ValueError, "angle must hold values"),
        ({"zoom": torch.tensor([1.0, float("nan")])}, ValueError, "zoom must be finite"),
        ({"angle": torch.zeros(3)}, ValueError, r"angle must be a number or \[2\]"),
        ({"brightness": float("inf")}, ValueError, "brightness must be within"),
        ({"sampling": "bicubic"}, ValueError, "sampling must be one of 'single', 'nested'"),
        ({"sampling": 1}, TypeError, "sampling must be a string, got int"),
        ({"out": torch.zeros(2, 3, 8, 9)}, ValueError, r"out must be \[2, 3, 8, 8\]"),
        ({"out": torch.zeros(2, 3, 8, 8).requires_grad_()}, ValueError, "out must not require"),
    ],
)
@pytest.mark.parametrize("op", [paste_patch, paste_patch_reference])
def test_bad_arguments_change_nothing(op, change, error, message) -> None:
    arguments = {
        "images": noise(2, 3, 8, 8),
        "patch": noise(3, 4, 4),
        "top_left": PLACE,
        "out": torch.zeros(2, 3, 8, 8),
    }
    arguments.update(change)
    with pytest.raises(error, match=f"paste_patch: .*{message}"):
        op(**arguments)
    assert not arguments["out"].any()


@pytest.mark.compiled
def test_the_kernel_takes_float32_and_the_twin_float64_too() -> None:
    images, patch = noise(2, 3, 8, 8).double(), noise(3, 4, 4).double()
    assert paste_patch_reference(images, patch, top_left=PLACE).dtype == torch.float64
    with pytest.raises(ValueError, match="paste_patch: images must be float32, got float64"):
        paste_patch(images, patch, top_left=PLACE)


@pytest.mark.parametrize("op", [paste_patch, paste_patch_reference])
def test_out_may_not_overlap_what_is_read(op) -> None:
    memory = noise(3, 1, 8, 8)
    with pytest.raises(ValueError, match="images itself or not overlap"):
        op(memory[:2], noise(1, 2, 2), top_left=PLACE, out=memory[1:])
    with pytest.raises(ValueError, match="out must not overlap the patch"):
        op(noise(2, 1, 8, 8), memory[1, :, :4, :4], top_left=PLACE, out=memory[:2])
    leaf = noise(2, 1, 8, 8).requires_grad_()
    with pytest.raises(ValueError, match=r"out must not require|images need no gradient"):
        op(leaf, noise(1, 2, 2), top_left=PLACE, out=leaf)
    with pytest.raises(ValueError, match="images need no gradient"):
        op(leaf, noise(1, 2, 2), top_left=PLACE, out=leaf.detach())


@pytest.mark.parametrize("mask", [None, torch.ones(4, 4, dtype=torch.uint8)])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.compiled
def test_registration(mask: Tensor | None, nested: bool, device: torch.device) -> None:
    geometry = (
        mask if mask is None else mask.to(device),
        PLACE.to(device),
        torch.tensor([[1.0, 0.0, 1.0, 0.0]] * 2, device=device).double(),
        nested,
    )
    images = noise(2, 3, 8, 8).to(device).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, from inside opcheck
        for patches in (1, 2):
            patch = noise(patches, 3, 4, 4).to(device).requires_grad_()
            torch.library.opcheck(torch.ops.pycc.paste_patch.default, (images, patch, *geometry))
            torch.library.opcheck(
                torch.ops.pycc.paste_patch_backward.default,
                (images.detach(), patch.detach(), *geometry),
            )


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own, in jvp
@pytest.mark.compiled
def test_forward_mode_derivatives_are_refused() -> None:
    images, patch = noise(2, 1, 5, 5), noise(1, 2, 2)
    message = "paste_patch: forward-mode derivatives are not supported"

    def paste(images: Tensor, patch: Tensor, out: Tensor | None = None) -> Tensor:
        return paste_patch(images, patch, top_left=PLACE, out=out)

    with forward_ad.dual_level():
        dual_images = forward_ad.make_dual(images, torch.ones_like(images))
        dual_patch = forward_ad.make_dual(patch, torch.ones_like(patch))
        for out in (None, torch.empty_like(images)):
            with pytest.raises(ValueError, match=message):
                paste(dual_images, patch, out)
            with pytest.raises(ValueError, match=message):
                paste(images, dual_patch, out)
        tangent = forward_ad.unpack_dual(paste_patch_reference(images, dual_patch, top_left=PLACE))[
            1
        ]
        assert tangent.sum() == 8  # the twin has them: 4 pixels of 2 images
        with pytest.raises(TypeError, match="paste_patch: patch must be a tensor"):
            paste(images, 1.0)
    with pytest.raises(ValueError, match=message):
        torch.func.jvp(lambda patch: paste(images, patch), (patch,), (torch.ones_like(patch),))


@pytest.mark.compiled
def test_it_compiles_into_one_graph() -> None:
    transform = torch.tensor([[0.9, 0.1, 1.1, 0.0]] * 2).double()

    def loss(images: Tensor, patch: Tensor) -> Tensor:
        pasted = torch.ops.pycc.paste_patch(images, patch, None, PLACE, transform, False)
        return pasted.square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    gradients = []
    for function in (loss, compiled):
        patch = noise(1, 3, 4, 4).requires_grad_()
        function(noise(2, 3, 8, 8), patch).backward()
        gradients.append(patch.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": noise(2, 3, 8, 8).double()}, "images must be float32, got float64"),
        ({"images": noise(2, 3, 8, 8).to_sparse()}, "images must be a dense tensor"),
        ({"images": noise(3, 8, 8)}, "images must be"),
        ({"patch": noise(1, 3, 4, 4).to_sparse()}, "patch must be a dense tensor"),
        ({"patch": noise(1, 3, 4, 4).half()}, "patch must be float32, got float16"),
        ({"patch": noise(3, 3, 4, 4)}, "patch must be"),
        ({"patch": noise(1, 2, 4, 4)}, "patch must be"),
        ({"mask": torch.ones(4, 5, dtype=torch.uint8)}, "mask must be"),
        ({"mask": torch.ones(4, 4)}, "mask must be uint8"),
        ({"top_left": PLACE[:1]}, "top_left must be"),
        ({"transform": torch.ones(2, 4)}, "transform must be float64"),
        *(
            ({name: tensor}, "tensors must be on one device, got cpu and meta")
            for name, tensor in (
                ("patch", noise(1, 3, 4, 4).to("meta")),
                ("mask", torch.ones(4, 4, dtype=torch.uint8, device="meta")),
                ("top_left", PLACE.to("meta")),
                ("transform", torch.ones(2, 4, device="meta").double()),
            )
        ),
    ],
)
@pytest.mark.compiled
def test_the_registered_ops_check_before_they_hand_out_pointers(change, message) -> None:
    arguments = {
        "images": noise(2, 3, 8, 8),
        "patch": noise(1, 3, 4, 4),
        "mask": None,
        "top_left": PLACE,
        "transform": torch.tensor([[1.0, 0.0, 1.0, 0.0]] * 2).double(),
        "nested": False,
    }
    torch.ops.pycc.paste_patch(**arguments)
    with pytest.raises(ValueError, match=f"paste_patch: .*{message}"):
        torch.ops.pycc.paste_patch(**{**arguments, **change})
    arguments.update(change)
    arguments["grad"] = arguments.pop("images")
    with pytest.raises(ValueError, match=f"paste_patch: .*{message.replace('images', 'grad')}"):
        torch.ops.pycc.paste_patch_backward(**arguments)


@pytest.mark.compiled
def test_the_registered_op_reads_a_transposed_mask_right() -> None:
    mask = (noise(4, 4) < 0.5).to(torch.uint8)
    arguments = (PLACE, torch.tensor([[1.0, 0.0, 1.0, 0.0]] * 2).double(), False)
    images, patch = noise(2, 3, 8, 8), noise(1, 3, 4, 4)
    expected = torch.ops.pycc.paste_patch(images, patch, mask, *arguments)
    got = torch.ops.pycc.paste_patch(images, patch, mask.T.contiguous().T, *arguments)
    assert torch.equal(got, expected)
