"""The functions that users call first refuse a wrong argument by its name, with a remedy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import pycc
from pycc import attack, backdoor, certify, data, models, train
from pycc.types import Counter, Sample, check_counter, check_sequence

APAM = attack.APAM(patch_size=16, steps=1, objective="over")
MASKED = certify.Masked(allowance=2.0)


def certified(counter: Counter, samples: Any) -> object:
    calibration = certify.calibrate(counter, [], method=MASKED, patch_sizes=[20])
    return certify.run(counter, samples, calibration=calibration, patch_sizes=[20])


CALLS: dict[str, Callable[[Any, Any], object]] = {
    "attack": lambda counter, samples: attack.run(counter, samples, APAM, checks=False),
    "calibrate": lambda counter, samples: certify.calibrate(counter, samples, patch_sizes=[20]),
    "certify": certified,
    "train": lambda counter, samples: train.fit(counter, samples),
    "backdoor": lambda counter, samples: backdoor.evaluate(
        counter, samples, backdoor.Noise(), backdoor.Minus()
    ),
    "poison": lambda _, samples: backdoor.poison(samples, backdoor.Noise(), backdoor.Minus()),
}
OF_A_COUNTER = [name for name in CALLS if name != "poison"]


@pytest.fixture(scope="module")
def counter() -> Counter:
    return models.load("mcnn-synthetic")


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_samples_of_another_type_are_refused(
    call: Callable[[Any, Any], object], counter: Counter
) -> None:
    image = torch.rand(3, 64, 64)
    sample = Sample("street", image, None)
    others: list[tuple[object, str]] = [
        (image[None], "Tensor"), ([image], "Tensor at index 0"), (image.numpy(), "ndarray"),
        ([sample, "street.jpg"], "str at index 1"), ("street", "str"), (None, "NoneType"),
        (sample, "Sample"), ({"a": sample}, "dict"), (iter([sample]), "list_iterator"),
    ]  # fmt: skip
    for samples, got in others:
        with pytest.raises(TypeError, match=rf"samples must be a data set .* got {got}$"):
            call(counter, samples)
    with pytest.raises(ValueError, match=r"at least one|no image is left to calibrate on"):
        call(counter, [])


@pytest.mark.parametrize("name", OF_A_COUNTER)
def test_images_that_are_not_float32_of_three_channels_are_refused(
    name: str, counter: Counter
) -> None:
    image, heads = torch.rand(3, 64, 64), torch.full((5, 2), 20.0)
    for wrong in (image[:1], image[None], image.double(), torch.zeros_like(image).byte()):
        samples = [Sample(f"street {n}", wrong, heads) for n in range(2)]
        with pytest.raises(ValueError, match=r"street 0: image must be \[3,H,W\] float32, got"):
            CALLS[name](counter, samples)
    for values, cause in ((255 * image, "divide by 255"), (image * torch.nan, "NaN or infinity")):
        with pytest.raises(ValueError, match=f"street: image must hold RGB .*{cause}"):
            Sample("street", values, None)


@pytest.mark.parametrize("name", [*OF_A_COUNTER, "count", "APAM"])
def test_what_is_no_counter_is_refused(name: str) -> None:
    samples = data.open("synthetic", split="train", limit=2, shape=(64, 64))
    calls = {
        **CALLS, "count": pycc.count, "APAM": lambda c, samples: APAM(c, [samples[0].image])
    }  # fmt: skip
    for wrong in ("mcnn", torch.nn.Conv2d(3, 1, 3)):
        with pytest.raises(TypeError, match=r"counter must .* \(?pycc\.models"):
            calls[name](wrong, samples)


def test_images_of_an_attack(counter: Counter) -> None:
    sample = data.open("synthetic", limit=1, shape=(64, 64))[0]
    for images, message in (
        ([sample], "got samples; use pycc.attack.run"), (None, "got NoneType"),
        (sample, "got Sample"), ("street.jpg", "got str"), ([sample.image.numpy()], "got ndarray"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=f"^APAM: image.*{message}"):
            APAM(counter, images)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="APAM: images must be at least one, got none"):
        APAM(counter, [])


def test_other_arguments_are_named(counter: Counter) -> None:
    scenes = data.open("synthetic", split="train", limit=2, shape=(64, 64))
    image, noise, minus = scenes[0].image, backdoor.Noise(), backdoor.Minus()
    run, calibrate = partial(attack.run, counter, scenes), partial(certify.calibrate, counter)
    certified = partial(certify.run, counter, scenes, patch_sizes=[20])
    known = certify.Calibration()
    additive = partial(certify.additive, counter, image, patch_size=8)
    evaluate, poison = partial(backdoor.evaluate, counter, scenes), backdoor.poison
    calls: list[tuple[str, Callable[[], object]]] = [
        ("count: max_pixels .* got 1.5", lambda: pycc.count(counter, image, max_pixels=1.5)),
        ("attack: attacks .* got 'apam'", lambda: run("apam")),
        ("attack: attacks .* got the class APAM", lambda: run([attack.APAM])),
        ("attack: seeds .* got 1.5", lambda: run(APAM, seeds=1.5)),
        ("attack: seed .* got 'x'", lambda: APAM(counter, [image], seed="x")),
        ("attack: pgd .* got bool", lambda: run(APAM, pgd=True)),
        ("attack: surrogates .* got list", lambda: run(APAM, surrogates=[counter])),
        ("APAM: points .* got list", lambda: APAM(counter, [image], points=[[1.0, 2.0]])),
        ("certify: method .* got the class Masked", lambda: calibrate([], method=certify.Masked)),
        ("certify: patch_sizes .* got int", lambda: calibrate([], patch_sizes=20)),
        ("certify: patch_sizes .* got 20.5", lambda: calibrate([], patch_sizes=[20.5])),
        ("certify: calibration .* got None", lambda: certified(calibration=None)),
        ("train: config .* got dict", lambda: train.fit(counter, scenes, {"epochs": 1})),
        ("poison: trigger .* got Minus", lambda: poison(scenes, minus, noise)),
        ("poison: strategy .* got 'add'", lambda: poison(scenes, noise, "add")),
        ("poison: fraction .* got None", lambda: poison(scenes, noise, minus, fraction=None)),
        ("backdoor: strategy .* got None", lambda: evaluate(noise, None)),
        ("certify: seed .* got 'x'", lambda: certified(seed='x', calibration=known)),
        ("train: seed .* got 0.5", lambda: train.fit(counter, scenes, seed=0.5)),
        ("poison: seed .* got 'x'", lambda: poison(scenes, noise, minus, seed="x")),
        ("backdoor: seed .* got 'x'", lambda: evaluate(noise, minus, seed="x")),
        ("PGD: epsilon .* got '8'", lambda: attack.PGD(epsilon="8")),
        ("InnerAttack: steps .* got 2.5", lambda: attack.InnerAttack(81, 2.5)),
        ("FinePruning: tolerance .* got 'x'", lambda: backdoor.FinePruning(tolerance="x")),
        ("FineTuning: epochs .* got 'x'", lambda: backdoor.FineTuning(epochs="x")),
        ("blend-consistency: blends .* got 2.5", lambda: backdoor.BlendConsistency(blends=2.5)),
        ("caps: cap of a cell .* got '2'", lambda: additive(caps="2")),
        ("certify: patches .* got 1.5", lambda: additive(caps=1.0, patches=1.5)),
    ]  # fmt: skip
    for message, call in calls:
        with pytest.raises(TypeError, match=f"^{message}$"):
            call()


def test_what_has_a_length_and_items_is_a_sequence_of_samples() -> None:
    class Street:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Sample:
            raise AssertionError("not read")

    check_sequence("attack", Street())
    check_sequence("attack", ())
    with pytest.raises(TypeError, match="got ndarray"):
        check_sequence("attack", np.zeros(3))


def test_a_function_with_a_stride_is_a_counter() -> None:
    def counter(images: torch.Tensor) -> torch.Tensor:
        return images.mean(1, keepdim=True)

    with pytest.raises(TypeError, match="got a function without stride"):
        check_counter("count", counter)
    vars(counter).update(stride=1, receptive_field=1)
    check_counter("count", counter)
