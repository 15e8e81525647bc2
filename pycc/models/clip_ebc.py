"""CLIP-EBC with CLIP's ResNet-50: counting as classification of blocks by prompts.

Ma, Sanchez and Guha, "CLIP-EBC: CLIP Can Count Accurately through Enhanced Blockwise
Classification". Image features of every block of 8x8 pixels are compared with the features of five
sentences ("There is one person."); a block's count is the mean of the bins' counts, weighted with
the probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pycc.models.augmentation import ColourJitter, GaussianBlur, PepperAndSalt
from pycc.models.base import MODELS, CounterModel
from pycc.models.clip import PROMPTS, Prompt, adopt_clip
from pycc.models.clip_ebc_net import CLIPEBCNet
from pycc.models.convention import Convention, Kind, convention
from pycc.models.dace import COUNT_LOSSES, CountLoss, dace_loss
from pycc.models.options import choice
from pycc.models.recipe import Crop, Optimiser, Recipe, Schedule

Data = Literal["shanghaitech_a", "shanghaitech_b", "nwpu", "qnrf", "jhu"]
Anchors = Literal["average", "middle"]

_STRIDE = 8
_PERIOD = 16  # pixels by which an image must move for its map to move, by two cells

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
    """CLIP-EBC (ResNet-50, reduction 8, truncation 4) as a counter; 135,465,313 parameters.

    * ``data``: the data set that gives the count of the last bin, the mean over its blocks with
      four or more heads: ``"shanghaitech_a"`` (the default), ``"shanghaitech_b"``, ``"nwpu"``,
      ``"qnrf"``, ``"jhu"``. Weights do not show it; state the set that they were trained on.
    * ``anchors``: the count of the last bin is ``"average"``, that mean, or ``"middle"``, 4.
    * ``prompt``: ``"word"`` ("There is one person.") or ``"number"`` ("There is 1 person.").
    * ``text_encoder``: False leaves CLIP's frozen text encoder out (63,690,240 parameters); the
      prompts' features are then part of the weights. ``without_text_encoder`` makes such a counter.
    * ``count_loss``: ``"mae"``, ``"mse"`` or ``"dmcount"``, see ``pycc.models.dace``.
    * ``input``, ``mean``, ``std``: the input convention, see ``pycc.models.convention.Convention``;
      by default RGB standardised with ImageNet's mean and deviation. ``scale``: people for an
      output of 1.

    Two things differ from other counters, since the encoder's grid has 16 pixels and the map 8.
    First, of a side that is 8 to 14 more than a multiple of 16, the published network counts only
    that multiple; the last cell is then 0 here, so that map and image keep their relation and the
    count is the published one. (Published images are resized to multiples of 32 beforehand.)
    Second, ``receptive_field`` is None: a cell depends on no more than 418x418 pixels around it,
    but a window cut out of an image at an odd multiple of the stride lies on another grid and is
    counted differently, so a window cannot replace the image.

    A fresh network has random encoders, drawn as CLIP draws them; ``pycc.models.load`` accepts
    OpenAI's RN50 archive, from which training starts.
    """

    name = "clip_ebc"
    minimum_side = _PERIOD - 1
    adjustable = frozenset({"count_loss"})
    not_in_keys: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "data": (),
        "anchors": (),
        "prompt": (),
    }
    net: CLIPEBCNet

    def __init__(
        self,
        *,
        data: Data = "shanghaitech_a",
        anchors: Anchors = "average",
        prompt: Prompt = "word",
        text_encoder: bool = True,
        count_loss: CountLoss = "mae",
        input: Kind | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        scale: float = 1.0,
    ) -> None:
        choice("clip_ebc", "data", data, _LAST_ANCHOR)
        choice("clip_ebc", "anchors", anchors, ("average", "middle"))
        choice("clip_ebc", "prompt", prompt, PROMPTS)
        choice("clip_ebc", "text_encoder", text_encoder, (True, False))
        choice("clip_ebc", "count_loss", count_loss, COUNT_LOSSES)
        input_convention = convention(
            "clip_ebc", input, Convention("rgb_standard"), mean=mean, std=std
        )
        last = _LAST_ANCHOR[data] if anchors == "average" else _BINS - 1
        super().__init__(
            CLIPEBCNet(
                PROMPTS[prompt],
                [*range(_BINS - 1), last],
                text_encoder=text_encoder,
            ),
            stride=_STRIDE,
            receptive_field=None,
            period=_PERIOD,
            scale=scale,
            convention=input_convention,
        )
        self.data, self.anchors, self.prompt, self.count_loss = data, anchors, prompt, count_loss

    def run(self, x: Tensor) -> Tensor:
        """Compute the network's map [N,1,h,w]; the cells that it omits are appended to it."""
        output = self.net(x)
        cells: Tensor = output[1] if isinstance(output, tuple) else output
        return cells

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
        values that are not whole numbers, and for a side of which the network omits cells (8 to 14
        more than a multiple of 16), since these cannot be classified.
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

        It shares no memory with this one and has 63,690,240 parameters fewer. ``pycc.models.save``
        and ``load`` treat it like any counter.
        """
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
        return {
            "data": self.data,
            "anchors": self.anchors,
            "prompt": self.prompt,
            "text_encoder": self.net.text_encoder is not None,
            "count_loss": self.count_loss,
            "scale": self.scale,
            **self.convention.options(),
        }

    def recipe(self) -> Recipe:
        """Return the published code's defaults: OpenAI's RN50 weights, a frozen text encoder."""
        return Recipe(
            source="Yiming-M/CLIP-EBC",
            optimisers=(Optimiser("adam", 1e-4, weight_decay=1e-4),),
            epochs=2600,
            batch=8,
            density={"": "dots"},
            down_sampling="sum",
            schedule=Schedule(
                "cosine_restarts", period=5, factor=2.0, floor=1e-7, warmup=50, warmup_lr=1e-6
            ),
            crop=Crop("scaled", size=(448, 448), scale=(1.0, 2.0), multiple=32),
            flip=0.5,
            augmentations=(
                ColourJitter(0.2, brightness=0.1, contrast=0.1, saturation=0.1),
                GaussianBlur(0.2, kernel=5, sigma=(0.1, 5.0)),
                PepperAndSalt(0.5, pepper=1e-3, salt=1e-3),
            ),
            notes=(
                "images are resized (cubic) to multiples of 32 within 448 and 4096 pixels "
                "(NWPU 3072, QNRF 2048); a crop is resized bicubically with anti-aliasing",
                "heads of one pixel merge in the target; with a smoothed density map nearly all "
                "blocks would match no bin and become class 0",
                "the default count loss is mae; the README's commands choose dmcount, but in "
                "run.sh a comment inside the command cuts that option off for ResNet-50",
                "the transport term is summed over a batch, all others averaged; here it is "
                "averaged too, so that a batch's loss does not depend on how it is computed",
                "resize_density_map divides the wrong way; it is not used here",
            ),
        )

    @classmethod
    def recognise(cls, state: Mapping[str, Tensor]) -> dict[str, object] | None:
        """Recognise the published keys, with the text encoder or with stored text features."""
        if not {"image_encoder.layer4.0.conv1.weight", "image_decoder.0.conv1.weight"} <= set(
            state
        ):
            return None
        return {"text_encoder": "text_features" not in state}

    @torch.no_grad()
    def adopt(self, state: Mapping[str, Tensor]) -> str | None:
        """Take both encoders from OpenAI's RN50 (``visual.*`` and the text encoder's own names).

        Its attention pooling, temperature and three sizes are left out. Without a text encoder, the
        archive's computes the prompts' features. None if it is not CLIP; ValueError if its parts or
        sizes differ.
        """
        text = self.net.text_encoder or self.net.new_text_encoder().to(self.net.text_features)
        taken = adopt_clip(self.net.image_encoder, text, state)
        if taken is not None and self.net.text_encoder is None:
            self.net.text_features.copy_(self.net.encode(text))
        return taken


def _left_out(x: Tensor, cells: Tensor) -> tuple[int, int]:
    """Return the numbers of rows and columns of cells of x [N,3,H,W] that a map [N,1,h,w] lacks."""
    rows, columns = (
        max(0, size // _STRIDE - number)
        for size, number in zip(x.shape[2:], cells.shape[2:], strict=True)
    )
    return rows, columns
