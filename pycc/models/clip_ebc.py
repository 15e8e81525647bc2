"""CLIP-EBC on CLIP's ResNet-50, CLIP's ViT-B/16 or VGG-19: counting as classification of blocks.

Ma, Sanchez and Guha, "CLIP-EBC: CLIP Can Count Accurately through Enhanced Blockwise
Classification". Image features of every block of 8x8 pixels are compared with the features of five
sentences ("There is one person."); a block's count is the mean of the bins' counts, weighted with
the probabilities. VGG-19's blocks are classified by a convolution, without sentences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pycc.models import vgg
from pycc.models.augmentation import ColourJitter, GaussianBlur, PepperAndSalt
from pycc.models.base import MODELS, CounterModel
from pycc.models.clip import PROMPTS, Prompt, adopt_clip
from pycc.models.clip_ebc_net import (
    BlockClassifier,
    CLIPEBCNet,
    PromptedNet,
    VGG19EBCNet,
    ViTEBCNet,
)
from pycc.models.clip_vit import PATCH
from pycc.models.convention import Convention, Kind, convention
from pycc.models.dace import COUNT_LOSSES, CountLoss, dace_loss
from pycc.models.options import choice, known, shown
from pycc.models.recipe import Crop, Optimiser, Recipe, Schedule
from pycc.models.sliding import slide

Backbone = Literal["resnet50", "vgg19", "vit_b_16"]
Data = Literal["shanghaitech_a", "shanghaitech_b", "nwpu", "qnrf", "jhu"]
Anchors = Literal["average", "middle"]

_STRIDE = 8
_PERIOD = 16  # pixels by which an image must move for its map to move, by two cells

_BACKBONES: dict[Backbone, int] = {"resnet50": _PERIOD - 1, "vgg19": _PERIOD, "vit_b_16": PATCH}
"""The smallest side that each takes, in pixels."""
_VGG19_FIELD = 308
"""150 pixels before a cell and 142 behind it, or the reverse; see ``pycc.models.vgg19``."""
_PROMPTS, _WINDOW = 32, 224

_BINS = 5  # {0}, {1}, {2}, {3}, [4, ∞)
_LAST_ANCHOR: dict[Data, float] = {
    "shanghaitech_a": 4.29992,
    "shanghaitech_b": 4.41009,
    "nwpu": 4.21931,
    "qnrf": 4.21937,
    "jhu": 4.24058,
}
"""Mean number of heads in the blocks with four or more, by data set."""


@MODELS.register("clip_ebc")
class CLIPEBC(CounterModel):
    """CLIP-EBC (reduction 8, truncation 4) as a counter of stride 8.

    * ``backbone``: ``"resnet50"`` (the default; 135,465,313 parameters), ``"vit_b_16"``
      (160,536,065) or ``"vgg19"`` (21,499,973, also called DMCount-EBC). Keys show it.
    * ``data``: the data set that gives the count of the last bin, the mean over its blocks with
      four or more heads: ``"shanghaitech_a"`` (the default), ``"shanghaitech_b"``, ``"nwpu"``,
      ``"qnrf"``, ``"jhu"``. Weights do not show it; state the set that they were trained on.
    * ``anchors``: the count of the last bin is ``"average"``, that mean, or ``"middle"``, 4.
    * ``count_loss``: ``"mae"``, ``"mse"`` or ``"dmcount"``, see ``pycc.models.dace``.
    * ``input``, ``mean``, ``std``: the input convention, see ``pycc.models.convention.Convention``;
      by default RGB standardised with ImageNet's mean and deviation. ``scale``: people for an
      output of 1.

    Those on CLIP, "resnet50" and "vit_b_16", also have

    * ``prompt``: ``"word"`` ("There is one person.") or ``"number"`` ("There is 1 person.").
    * ``text_encoder``: False leaves CLIP's frozen text encoder out (63,690,240 parameters of
      "resnet50"); the prompts' features are then part of the weights. ``without_text_encoder``
      makes such a counter.

    and "vit_b_16" has

    * ``prompts``: trained tokens that each block of its frozen image encoder reads; published 32.
    * ``window``: side in pixels of the crops that it was trained on; published 224. Keys show both.
    * ``sliding``: whether an image is counted window by window (the default), as published results
      are, or at once; then every cell depends on the whole image. A shorter side is one window.

    A cell is a mean of the bins' counts and never exceeds the last of them (``most_per_cell``).

    Two things differ from other counters, since the encoder's grid has 16 pixels and the map 8.
    First, of a side that is 8 or more (of "resnet50" 8 to 14) above a multiple of 16, the published
    network counts only that multiple; the last cell is then 0 here, so that map and image keep
    their relation and the count is the published one. (Published images are resized to multiples of
    32 beforehand.) Second, a window cut out of an image at an odd multiple of the stride lies on
    another grid and is counted differently, so a window cannot replace the image. A cell of "vgg19"
    depends on 300x300 pixels, which lie otherwise for cells of even and odd numbers;
    ``receptive_field`` covers both. It is None for the others: a cell of "resnet50" depends on no
    more than 418x418 pixels around it, one of "vit_b_16" on all windows that hold it.

    A fresh network has random encoders, drawn as CLIP or torchvision draw them;
    ``pycc.models.load`` accepts OpenAI's RN50 and ViT-B/16 archives and torchvision's VGG-19, from
    which training starts.
    """

    name = "clip_ebc"
    minimum_side = _PERIOD - 1
    adjustable = frozenset({"count_loss", "sliding"})
    not_in_keys: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "data": (),
        "anchors": (),
        "prompt": (),
    }
    net: BlockClassifier

    def __init__(
        self,
        *,
        backbone: Backbone = "resnet50",
        data: Data = "shanghaitech_a",
        anchors: Anchors = "average",
        prompt: Prompt = "word",
        prompts: int = _PROMPTS,
        window: int = _WINDOW,
        sliding: bool = True,
        text_encoder: bool = True,
        count_loss: CountLoss = "mae",
        input: Kind | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        scale: float = 1.0,
    ) -> None:
        choice("clip_ebc", "backbone", backbone, _BACKBONES)
        choice("clip_ebc", "data", data, _LAST_ANCHOR)
        choice("clip_ebc", "anchors", anchors, ("average", "middle"))
        choice("clip_ebc", "prompt", prompt, PROMPTS)
        choice("clip_ebc", "sliding", sliding, (True, False))
        choice("clip_ebc", "text_encoder", text_encoder, (True, False))
        choice("clip_ebc", "count_loss", count_loss, COUNT_LOSSES)
        _check_sizes(prompts, window)
        if backbone == "vgg19":
            _unused(backbone, {"prompt": prompt != "word", "text_encoder": not text_encoder})
        if backbone != "vit_b_16":
            _unused(
                backbone,
                {
                    "prompts": prompts != _PROMPTS,
                    "window": window != _WINDOW,
                    "sliding": not sliding,
                },
            )
        input_convention = convention(
            "clip_ebc", input, Convention("rgb_standard"), mean=mean, std=std
        )
        last = _LAST_ANCHOR[data] if anchors == "average" else float(_BINS - 1)
        counts = [*range(_BINS - 1), last]
        net: BlockClassifier
        if backbone == "vgg19":
            net = VGG19EBCNet(counts)
        elif backbone == "vit_b_16":
            net = ViTEBCNet(
                PROMPTS[prompt], counts, prompts=prompts, window=window, text_encoder=text_encoder
            )
        else:
            net = CLIPEBCNet(PROMPTS[prompt], counts, text_encoder=text_encoder)
        super().__init__(
            net,
            stride=_STRIDE,
            receptive_field=_VGG19_FIELD if backbone == "vgg19" else None,
            period=_PERIOD,
            scale=scale,
            convention=input_convention,
        )
        self.backbone, self.prompts, self.window, self.sliding = backbone, prompts, window, sliding
        self.data, self.anchors, self.prompt, self.count_loss = data, anchors, prompt, count_loss
        self.minimum_side = _BACKBONES[backbone]
        self.most_per_cell = last * self.scale

    def run(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute logits [N,5,h,w] and map [N,1,h,w] of x [N,3,H,W], in windows if they slide."""
        if self.backbone == "vit_b_16" and self.sliding:
            return slide(self.net.scores, x, window=self.window, stride=_STRIDE)
        return self.net.scores(x)

    def density(self, output: object) -> Tensor:
        """Convert logits and map, or a map alone, to people per cell [N,1,h,w]."""
        return super().density(output[1] if isinstance(output, tuple) else output)

    def increasing(self, output: object) -> Tensor:
        """Sum the logits by cell: this shows what a cell depends on."""
        assert isinstance(output, tuple)
        logits: Tensor = output[0]
        return logits.sum(1, keepdim=True)

    def loss(
        self,
        images: Tensor,
        target: Tensor,
        *,
        points: Sequence[Tensor] | None = None,
        region: Tensor | None = None,
    ) -> Tensor:
        """Compute DACE, the published loss, of images [N,3,H,W]; a scalar.

        ``target`` [N,1,h,w] are heads per block of 8x8 pixels: whole numbers, sums of a dot map.
        ``points`` are the heads of each image, [M,2] (x, y) in its pixels; ``count_loss``
        ``"dmcount"`` needs them. ValueError without them, for a target of another shape or with
        values that are not whole numbers, and for a side of which the network omits cells (see
        above), since these cannot be classified. Windows do not slide here: images are crops.
        """
        self._check_images(images)
        x = self.preprocess(images)
        logits, cells = self.net.scores(x)
        if any(_left_out(x, cells)):
            raise ValueError(
                f"clip_ebc.loss: sides of images must be multiples of {_PERIOD} (or up to 7 more), "
                f"got {images.shape[2]}x{images.shape[3]}"
            )
        density = self._within(self.density(cells), target, region)
        return dace_loss(
            logits, density, target, count_loss=self.count_loss, points=points, stride=_STRIDE,
            region=region,
        )  # fmt: skip

    def without_text_encoder(self) -> CLIPEBC:
        """Return a counter with bit-identical maps that stores the prompts' features instead.

        It shares no memory with this one and has 63,690,240 parameters fewer ("resnet50").
        ``pycc.models.save`` and ``load`` treat it like any counter. ValueError for "vgg19", which
        has no prompts.
        """
        if not isinstance(self.net, PromptedNet):
            raise ValueError(f"clip_ebc: backbone {self.backbone!r} has no text encoder")
        options = {**self.options(), "text_encoder": False}
        with torch.device("meta"), torch.no_grad():
            other = type(self)(**options)  # type: ignore[arg-type]
        state = {
            key: value.detach().clone()
            for key, value in self.net.state_dict().items()
            if not key.startswith("text_encoder.")
        }
        state["text_features"] = self.net.prompt_features().detach().clone()
        other.net.load_state_dict(state, assign=True)
        return other.train(self.training)

    def options(self) -> dict[str, object]:
        """Return the keyword arguments that build this counter again; JSON values only."""
        options: dict[str, object] = {
            "backbone": self.backbone,
            "data": self.data,
            "anchors": self.anchors,
        }
        if isinstance(self.net, PromptedNet):
            options["prompt"] = self.prompt
            options["text_encoder"] = self.net.text_encoder is not None
        if self.backbone == "vit_b_16":
            options |= {"prompts": self.prompts, "window": self.window, "sliding": self.sliding}
        return {
            **options,
            "count_loss": self.count_loss,
            "scale": self.scale,
            **self.convention.options(),
        }

    def recipe(self) -> Recipe:
        """Return the published code's settings; encoders start from OpenAI's or ImageNet's."""
        vit = self.backbone == "vit_b_16"
        notes: tuple[str, ...] = (
            "images are resized (cubic) to multiples of 32 within 448 and 4096 pixels "
            "(NWPU 3072, QNRF 2048); a crop is resized bicubically with anti-aliasing",
            "heads of one pixel merge in the target; with a smoothed density map nearly all "
            "blocks would match no bin and become class 0",
            "the default count loss is mae; the README's commands choose dmcount, but in "
            "run.sh a comment inside the command cuts that option off for ResNet-50",
            "the transport term is summed over a batch, all others averaged; here it is "
            "averaged too, so that a batch's loss does not depend on how it is computed",
            "resize_density_map divides the wrong way; it is not used here",
        )
        if vit:
            notes = (*notes, "batches of 16 images, of each 2 crops, in mixed precision")
        side = self.window if vit else 448
        return Recipe(
            source="Yiming-M/CLIP-EBC",
            optimisers=(Optimiser("adam", 1e-4, weight_decay=1e-4),),
            epochs=2600,
            batch=32 if vit else 8,
            density={"": "dots"},
            down_sampling="sum",
            schedule=Schedule(
                "cosine_restarts",
                period=5,
                factor=2.0,
                floor=1e-7,
                warmup=50,
                warmup_lr=1e-3 if vit else 1e-6,
            ),
            crop=Crop(
                "scaled", number=2 if vit else 1, size=(side, side), scale=(1.0, 2.0), multiple=32
            ),
            flip=0.5,
            augmentations=(
                ColourJitter(0.2, brightness=0.1, contrast=0.1, saturation=0.1),
                GaussianBlur(0.2, kernel=5, sigma=(0.1, 5.0)),
                PepperAndSalt(0.5, pepper=1e-3, salt=1e-3),
            ),
            notes=notes,
        )

    @classmethod
    def recognise(cls, state: Mapping[str, Tensor]) -> dict[str, object] | None:
        """Recognise the published keys of each backbone, with or without the text encoder."""
        if {"backbone.features.0.weight", "backbone.reg_layer.0.weight", "classifier.weight"} <= (
            state.keys()
        ):
            return {"backbone": "vgg19"}
        if "image_decoder.0.conv1.weight" not in state:
            return None
        shown_options: dict[str, object] = {"text_encoder": "text_features" not in state}
        if "image_encoder.layer4.0.conv1.weight" in state:
            return {"backbone": "resnet50", **shown_options}
        if not {"image_encoder.positional_embedding", "vpt_0"} <= state.keys():
            return None
        tokens, prompts = (
            max((1, *state[key].shape[:1]))
            for key in ("image_encoder.positional_embedding", "vpt_0")
        )
        return {
            "backbone": "vit_b_16",
            "prompts": prompts,
            "window": PATCH * max(1, math.isqrt(tokens - 1)),
            **shown_options,
        }

    @torch.no_grad()
    def adopt(self, state: Mapping[str, Tensor]) -> str | None:
        """Take the encoders of OpenAI's archive of the backbone, or torchvision's VGG-19.

        OpenAI's names are ``visual.*`` and the text encoder's own. The last layer of the image
        encoder, the temperature and three sizes are left out. Without a text encoder, the archive's
        computes the prompts' features. None if it is not such a network; ValueError if its parts or
        sizes differ.
        """
        if isinstance(self.net, VGG19EBCNet):
            return vgg.adopt_vgg(self.net.trunk, state, network="VGG-19")
        assert isinstance(self.net, PromptedNet)
        text = self.net.text_encoder or self.net.new_text_encoder().to(self.net.text_features)
        network = "ViT-B/16" if self.backbone == "vit_b_16" else "RN50"
        taken = adopt_clip(self.net.image_encoder, text, state, network=network)
        if taken is not None and self.net.text_encoder is None:
            self.net.text_features.copy_(self.net.encode(text))
        return taken


def _check_sizes(prompts: object, window: object) -> None:
    if type(prompts) is not int or prompts < 1:
        raise ValueError(
            f"clip_ebc: prompts must be an integer of at least 1, got {shown(prompts)}"
        )
    if type(window) is not int or window < PATCH or window % PATCH:
        raise ValueError(
            f"clip_ebc: window must be a positive multiple of {PATCH} pixels, got {shown(window)}"
        )


def _unused(backbone: Backbone, given: Mapping[str, bool]) -> None:
    """Refuse options that a backbone does not have, if they are given."""
    for option, is_given in given.items():
        if is_given:
            others = [other for other in _BACKBONES if other not in (backbone, "vgg19")]
            if option in ("prompts", "window", "sliding"):
                others = ["vit_b_16"]
            raise ValueError(
                f"clip_ebc: {option} belongs to backbone {known(others)}, got {backbone!r}"
            )


def _left_out(x: Tensor, cells: Tensor) -> tuple[int, int]:
    """Return the numbers of rows and columns of cells of x [N,3,H,W] that a map [N,1,h,w] lacks."""
    rows, columns = (
        max(0, size // _STRIDE - number)
        for size, number in zip(x.shape[2:], cells.shape[2:], strict=True)
    )
    return rows, columns
