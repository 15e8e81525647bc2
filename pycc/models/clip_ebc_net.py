"""The networks of CLIP-EBC: the counts of blocks as classes.

Image features of blocks are compared with features of prompts (CLIP's ResNet-50, CLIP's ViT-B/16)
or classified by a convolution (VGG-19).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pycc.models import initial, vgg, vgg19
from pycc.models.clip import Bottleneck, ImageEncoder, TextEncoder
from pycc.models.clip_vit import PATCH, VisionTransformer


class BlockClassifier(nn.Module, ABC):
    """A network that classifies blocks: x [N,3,H,W] -> map [N,1,h,w]; in train mode (logits, map).

    A subclass computes ``logits`` [N,bins,h,w]; the map is the mean of the bins' counts,
    ``anchors``, weighted with the probabilities.
    """

    def __init__(self, anchors: Sequence[float]) -> None:
        super().__init__()
        self.anchors = [float(anchor) for anchor in anchors]

    @abstractmethod
    def logits(self, x: Tensor) -> Tensor:
        """Compute logits [N,bins,h,w] of x [N,3,H,W]."""

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits [N,bins,h,w] and map [N,1,h,w], people per cell, in either mode."""
        logits = self.logits(x)
        anchors = logits.new_tensor(self.anchors).view(-1, 1, 1)
        return logits, (logits.softmax(dim=1) * anchors).sum(dim=1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Compute the map [N,1,h,w] of x [N,3,H,W]; in train mode, as published, (logits, map)."""
        logits, cells = self.scores(x)
        return (logits, cells) if self.training else cells


class VGG19EBCNet(BlockClassifier):
    """The published network on VGG-19; h is 2*(H//16), likewise w; 21,499,973 parameters."""

    def __init__(self, anchors: Sequence[float]) -> None:
        super().__init__(anchors)
        trunk = vgg.trunk_19()
        initial.he(trunk)
        channels, layers = vgg.channels(trunk), list[nn.Module]()
        for outputs in vgg19.HEAD:
            layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.ReLU(inplace=True)]
            channels = outputs
        self.backbone = nn.ModuleDict({"features": trunk, "reg_layer": nn.Sequential(*layers)})
        self.classifier = nn.Conv2d(channels, len(self.anchors), 1)

    @property
    def trunk(self) -> nn.Sequential:
        """VGG-19's convolutions."""
        trunk = self.backbone["features"]
        assert isinstance(trunk, nn.Sequential)
        return trunk

    def logits(self, x: Tensor) -> Tensor:
        """Compute logits [N,bins,h,w] of x [N,3,H,W]."""
        features = self.backbone["features"](x)
        features = functional.interpolate(
            features, scale_factor=2.0, mode="bilinear", align_corners=False
        )
        logits: Tensor = self.classifier(self.backbone["reg_layer"](features))
        return logits


class PromptedNet(BlockClassifier):
    """Features of blocks compared with those of the bins' prompts; a subclass has the encoder.

    ``tokens`` are the ids of the bins' prompts, of any lengths. The text encoder is frozen. Its
    features are computed on every call and not cached, so that no change of its weights can be
    missed; they cost a fiftieth of an image of 448x448 pixels. Without it, the features are the
    buffer ``text_features`` [bins,embedding] of the state dict, random in a fresh network.
    """

    logit_scale: nn.Parameter
    image_encoder: nn.Module
    image_decoder: nn.Sequential
    projection: nn.Conv2d
    text_features: Tensor
    text_encoder: TextEncoder | None

    def __init__(
        self,
        tokens: Sequence[Sequence[int]],
        anchors: Sequence[float],
        *,
        text_width: int,
        text_layers: int,
    ) -> None:
        super().__init__(anchors)
        longest = max(map(len, tokens))
        self.tokens = [[*ids, *[0] * (longest - len(ids))] for ids in tokens]
        self._text_sizes = {"width": text_width, "layers": text_layers}

    def _complete(self, channels: int, embedding: int, *, text_encoder: bool) -> None:
        """Add what follows the decoder, and draw the decoder's and the projection's weights."""
        self.projection = nn.Conv2d(channels, embedding, 1)
        initial.he(self.image_decoder)
        initial.he(self.projection)
        self.text_encoder = None
        if text_encoder:
            self.text_encoder = self.new_text_encoder().requires_grad_(False)
        else:
            self.register_buffer("text_features", torch.randn(len(self.tokens), embedding))

    def new_text_encoder(self) -> TextEncoder:
        """Return a fresh text encoder that fits this network."""
        return TextEncoder(self.projection.out_channels, **self._text_sizes)

    def prompt_features(self) -> Tensor:
        """Return features [bins,embedding] of the prompts, not normalised.

        They come from the text encoder if there is one, otherwise from the buffer.
        """
        if self.text_encoder is None:
            return self.text_features
        return self.encode(self.text_encoder)

    def encode(self, text_encoder: TextEncoder) -> Tensor:
        """Compute features [bins,embedding] of the prompts with any text encoder."""
        device = text_encoder.positional_embedding.device
        # At the weights' own precision, as the published code computes them before training.
        with torch.autocast(device.type, enabled=False):
            features: Tensor = text_encoder(torch.tensor(self.tokens, device=device))
        return features

    def encoded(self, x: Tensor) -> Tensor:
        """Compute the image encoder's features [N,·,H//16,W//16]."""
        features: Tensor = self.image_encoder(x)
        return features

    def features(self, x: Tensor) -> Tensor:
        """Compute image features [N,embedding,h,w], not normalised."""
        x = functional.interpolate(
            self.encoded(x), scale_factor=2.0, mode="bilinear", align_corners=False
        )
        projected: Tensor = self.projection(self.image_decoder(x))
        return projected

    def logits(self, x: Tensor) -> Tensor:
        """Compute logits [N,bins,h,w] of x [N,3,H,W]."""
        image = functional.normalize(self.features(x), dim=1)
        text = functional.normalize(self.prompt_features(), dim=1)
        return self.logit_scale.exp() * functional.conv2d(image, text[:, :, None, None])


class CLIPEBCNet(PromptedNet):
    """The published network on CLIP's ResNet-50; 135,465,313 parameters.

    h is twice (⌈H/2⌉ halved three times, rounded down), likewise w. So up to 15 of the last rows or
    columns have no cell. The sizes are arguments; values other than the published ones are for
    tests.
    """

    def __init__(
        self,
        tokens: Sequence[Sequence[int]],
        anchors: Sequence[float],
        *,
        text_encoder: bool = True,
        width: int = 64,
        embedding: int = 1024,
        text_width: int = 512,
        text_layers: int = 12,
    ) -> None:
        super().__init__(tokens, anchors, text_width=text_width, text_layers=text_layers)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        encoder = ImageEncoder(width)
        channels = encoder.channels
        self.image_encoder = encoder
        self.image_decoder = nn.Sequential(Bottleneck(channels, channels, channels))
        self._complete(channels, embedding, text_encoder=text_encoder)


class ViTEBCNet(PromptedNet):
    """The published network on CLIP's ViT-B/16; it trains 11,308,545 of 160,536,065 parameters.

    h is 2*(H//16), likewise w. Both encoders are frozen; trained are ``prompts`` tokens in each of
    the encoder's blocks, the decoder, the projection and the temperature. The other arguments are
    sizes; values other than the published ones are for tests.
    """

    image_encoder: VisionTransformer

    def __init__(
        self,
        tokens: Sequence[Sequence[int]],
        anchors: Sequence[float],
        *,
        prompts: int = 32,
        window: int = 224,
        text_encoder: bool = True,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        embedding: int = 512,
        text_width: int = 512,
        text_layers: int = 12,
    ) -> None:
        super().__init__(tokens, anchors, text_width=text_width, text_layers=text_layers)
        bound = math.sqrt(6 / (3 * PATCH + width))
        for block in range(layers):
            drawn = torch.empty(prompts, width).uniform_(-bound, bound)
            self.register_parameter(f"vpt_{block}", nn.Parameter(drawn))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.image_encoder = VisionTransformer(
            window=window, width=width, layers=layers, heads=heads
        ).requires_grad_(False)
        self.image_decoder = nn.Sequential(_BasicBlock(width))
        self._complete(width, embedding, text_encoder=text_encoder)

    def encoded(self, x: Tensor) -> Tensor:
        """Compute the image encoder's features [N,width,H//16,W//16]."""
        blocks = len(self.image_encoder.transformer.resblocks)
        prompts = [self.get_parameter(f"vpt_{block}") for block in range(blocks)]
        features: Tensor = self.image_encoder(x, prompts)
        return features


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norms, and the input added: [N,C,h,w] -> the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        return functional.relu(self.bn2(self.conv2(y)) + x, inplace=True)
