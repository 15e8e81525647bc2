"""What pycc.ops passes to the kernels is what their C++ types say, on CPU and CUDA."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

import pycc.ops
from pycc.ops import _native
from pycc.ops._native import Kernel, Parameter

pytestmark = pytest.mark.compiled

CPU = torch.device("cpu")
MODULES = [
    importlib.import_module(f"pycc.ops.{module.name}")
    for module in pkgutil.iter_modules(pycc.ops.__path__)
]


def call_everything(device: torch.device) -> None:
    """Each op once, and its gradients; no values matter."""

    def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.ones(shape, dtype=dtype, device=device)

    def op(name: str, function: str) -> Callable[..., Tensor]:
        return getattr(importlib.import_module(f"pycc.ops.{name}"), function)

    images, places, sizes = ones(2, 3, 8, 6), ones(2, 2).long(), ones(3).long()
    op("ablate", "ablate")(images, 5, seed=-1, fill=0.5)
    op("ablate", "_ablate_backward")(images, 5, -1, 0, 1, 0, False)
    op("ablate", "ablation_indices")(50, 5, seed=1, device=device)
    op("keep_windows", "keep_windows")(images, places, (2, 3), fill=0.5)
    op("keep_windows", "_keep_windows_backward")(ones(4, 3, 8, 6), places, 2, 2, 3)
    patch, mask, transform = ones(1, 3, 2, 2), ones(2, 2, dtype=torch.uint8), ones(2, 4).double()
    for some in (None, mask):
        op("paste_patch", "_paste_patch")(images, patch, some, places, transform, True)
        op("paste_patch", "_paste_patch_backward")(images, patch, some, places, transform, False)
    x, offset, weight, grad = (
        ones(2, 3, 4, 5),
        ones(2, 18, 4, 5),
        ones(7, 3, 3, 3),
        ones(2, 7, 4, 5),
    )
    op("deform_conv", "deform_conv")(x, offset, weight)
    op("deform_conv", "_grad_x")(grad, offset, weight)
    op("deform_conv", "_grad_offset")(grad, x, offset, weight)
    op("deform_conv", "_grad_weight")(grad, x, offset)
    op("density_map", "density_map")(ones(3, 2), 1.0, (8, 6))
    op("adaptive_sigma", "adaptive_sigma")(ones(3, 2))
    op("log_probability", "log_probability_untouched")(9 * sizes, sizes, 2)
    maps = ones(2, 8, 6)
    op("topk_overlap", "topk_overlap")(maps, maps, 3)
    op("max_window_sum", "max_window_sum")(maps, (2, 3))
    op("max_window_sum", "max_window_sum")(ones(1, 1, 3000), (1, 3))
    op("max_pair_sum", "max_pair_sum")(maps, (2, 3), 0.5)
    none = ones(1, 1).long() - 1
    pairs = pycc.ops.WindowPairs(
        none.expand(2, 2), none[None, None], none[0], none[0], none, none, (1, 1)
    )
    op("pair_extremes", "pair_extremes")(pairs)
    op("mask_hits", "mask_hits")(places, (8, 6), 2)
    op("mask_hits", "mask_hits")(maps.bool(), (8, 6), 2)


class Posing(Tensor):
    """A tensor on the CPU that reports to be on CUDA."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda:0")


class PosingMode(TorchFunctionMode):
    """Replaces all tensors, also those requested on CUDA."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def on_cpu(value: object) -> object:
            return CPU if isinstance(value, torch.device) else value

        def posing(value: object) -> object:
            return value.as_subclass(Posing) if isinstance(value, Tensor) else value

        args, kwargs = tree_map(on_cpu, (args, kwargs or {}))
        return tree_map(posing, function(*args, **kwargs))


@contextlib.contextmanager
def posing_as_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the ops do before a kernel starts on CUDA, without a device."""
    for module in MODULES:
        for name, value in list(vars(module).items()):
            if isinstance(value, CustomOpDef):  # what it runs, past the dispatch by devices
                monkeypatch.setattr(module, name, value._init_fn)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=7))
    with PosingMode():
        yield


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_every_kernel_is_called_as_it_was_compiled(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a CUDA device too: arguments are checked before a kernel is called."""
    if name == "cuda" and _native.module().cuda is None:
        pytest.skip("pycc was built without CUDA")
    if name == "cuda" and hasattr(_native.module(), "emulate"):
        pytest.skip("the CUDA kernels are emulated, and refuse tensors on a device")
    called: set[str] = set()

    def watched(kernel_name: str, kernel: Kernel) -> Kernel:
        def note(*arguments: object) -> None:
            called.add(kernel_name)
            if name == "cpu":
                kernel[0](*arguments)

        return note, kernel[1]

    kernels = {each: watched(each, kernel) for each, kernel in _native.kernels.items()}
    monkeypatch.setattr(_native, "kernels", kernels)
    with contextlib.nullcontext() if name == "cpu" else posing_as_cuda(monkeypatch):
        call_everything(torch.device(name))
    assert called == {each for each in kernels if each.endswith(f"_{name}")}


def fitting(parameter: Parameter) -> object:
    if parameter.dtype is not None:
        return torch.zeros(2, 2, dtype=parameter.dtype)
    if hasattr(parameter.accepts, "__members__"):
        return next(iter(parameter.accepts))  # type: ignore[call-overload]
    return parameter.accepts.__new__(parameter.accepts)  # of sizes: no kernel reads it here


def others(parameter: Parameter) -> list[object]:
    """What a kernel must not get instead."""
    if parameter.dtype is None:
        wrong = [torch.zeros(2), None, "1", 1, 1.0, True]
        return [value for value in wrong if type(value) is not parameter.accepts]
    dtypes = (torch.float32, torch.float64, torch.int32, torch.int64, torch.uint8)
    return [
        *(torch.zeros(2, 2, dtype=dtype) for dtype in dtypes if dtype != parameter.dtype),
        torch.zeros(2, 2, dtype=parameter.dtype).t(),
        torch.zeros(2, 2, dtype=parameter.dtype, device="meta"),
        0,
        *([] if parameter.optional else [None]),
    ]


def every_parameter() -> list[tuple[str, int]]:
    kernels = _native.kernels.items()
    return [(name, i) for name, (_, parameters) in kernels for i in range(len(parameters))]


@pytest.mark.parametrize(("name", "index"), every_parameter())
def test_no_kernel_runs_on_what_it_does_not_take(
    name: str, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = _native.kernels[name][1]
    ran: list[int] = []
    stub = {"op_cpu": (lambda *passed: ran.append(len(passed)), parameters)}
    monkeypatch.setattr(_native, "kernels", stub)
    arguments = [fitting(parameter) for parameter in parameters]
    _native.call("op", CPU, tuple(arguments))
    assert ran == [len(parameters)]
    expected = f"^op: argument {index + 1} of the kernel must be "
    for wrong in others(parameters[index]):
        changed = (*arguments[:index], wrong, *arguments[index + 1 :])
        with pytest.raises(TypeError, match=expected):
            _native.call("op", CPU, changed)
    with pytest.raises(TypeError, match=f"^op: the kernel takes {len(parameters) - 1} arguments"):
        _native.call("op", CPU, tuple(arguments[:index] + arguments[index + 1 :]))
    assert len(ran) == 1


def test_messages_name_the_place_and_what_came() -> None:
    points, sigma = torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3)
    with pytest.raises(
        TypeError,
        match=r"^adaptive_sigma: argument 2 of the kernel must be a contiguous float64 tensor on "
        r"cpu, got a float32 tensor on cpu with strides \[1, 3\]$",
    ):
        _native.run("adaptive_sigma", CPU, sigma, points.float().view(2, 3).t(), 3, 1, 0.3)
    with pytest.raises(TypeError, match=r"argument 4 of the kernel must be of type int, got float"):
        _native.run("adaptive_sigma", CPU, sigma, points, 3, 1.0, 0.3)
    with pytest.raises(
        TypeError, match=r"^adaptive_sigma: the kernel takes 5 arguments .*, got 4$"
    ):
        _native.run("adaptive_sigma", CPU, sigma, points, 3, 1)
    assert Parameter.of("uint8?").describe(CPU) == "a contiguous uint8 tensor on cpu or None"


def test_the_kinds_are_those_of_the_source() -> None:
    """Written down once, so that what is deduced does not only agree with itself."""
    module = _native.module()
    kinds = module.kernels["paste_patch_cpu"][1]
    images = ("float32", "float32", "float32", "uint8?", "int64", "float64")
    assert kinds == (*images, module.PasteSizes, module.Sampling, int)
    kinds = module.kernels["density_map_cpu"][1]
    assert kinds == ("float32", "int64", "float64", int, int, int, int, float, module.Boundary, int)
    if module.cuda is not None:
        kinds = module.kernels["max_window_sum_cuda"][1]
        scratch = ("float64", "float64?", "uint8")
        assert kinds == ("float64", "int64", *scratch, "float32", module.SumSizes, int)
        assert module.kernels["mask_hits_dense_cuda"][1][:2] == ("int32", "uint64")


def test_the_module_has_what_is_typed() -> None:
    module = _native.module()
    public = {name for name in vars(module) if not name.startswith("_")}
    public.discard("emulate")  # of builds with PYCC_CUDA=HOST alone
    assert public - set(module.kernels) == set(_native.Compiled.__annotations__)
    for name, annotation in _native.Compiled.__annotations__.items():
        if annotation in ("int", "str"):
            assert type(getattr(module, name)).__name__ == annotation


def test_sizes_are_made_of_all_their_fields_by_name() -> None:
    make = _native.module().SumSizes
    fields = {"maps": 1, "height": 2, "width": 3, "window_height": 1, "window_width": 2}
    make(**fields)
    for bad in ({**fields, "depth": 1}, {**fields, "width": 2.5}, dict(list(fields.items())[:4])):
        with pytest.raises(TypeError):
            make(**bad)
    with pytest.raises(TypeError):
        make(*fields.values())


def test_enumerations_have_the_choices_of_the_ops() -> None:
    module = _native.module()
    for name, op, choices in (
        ("Boundary", "density_map", "BOUNDARIES"),
        ("Rounding", "log_probability", "ROUNDINGS"),
        ("Sampling", "paste_patch", "SAMPLINGS"),
    ):
        known = getattr(importlib.import_module(f"pycc.ops.{op}"), choices)
        assert set(known) == set(getattr(module, name).__members__)
