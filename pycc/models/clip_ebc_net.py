"""The network of CLIP-EBC: image features of blocks compared with features of prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pycc.models import initial
from pycc.models.clip import Bottleneck, ImageEncoder, TextEncoder


class CLIPEBCNet(nn.Module):
    """The published network: x [N,3,H,W] -> map [N,1,h,w] or, in train mode, (logits, map).

    ``logits`` are [N,bins,h,w]; h is twice (⌈H/2⌉ halved three times, rounded down), likewise w. So
    up to 15 of the last rows or columns have no cell. ``tokens`` are the ids of the bins' prompts,
    of any lengths, ``anchors`` the bins' counts. The text encoder is frozen. Its features are
    computed on every call and not cached, so that no change of its weights can be missed; they cost
    a fiftieth of an image of 448x448 pixels. Without it, the features are the buffer
    ``text_features`` [bins,embedding] of the state dict, random in a fresh network. The other
    arguments are sizes; values other than the published ones are for tests.
    """

    text_features: Tensor
    text_encoder: TextEncoder | None

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
        super().__init__()
        longest = max(map(len, tokens))
        self.tokens = [[*ids, *[0] * (longest - len(ids))] for ids in tokens]
        self.anchors = [float(anchor) for anchor in anchors]
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.image_encoder = ImageEncoder(width)
        channels = self.image_encoder.channels
        self.image_decoder = nn.Sequential(Bottleneck(channels, channels, channels))
        self.projection = nn.Conv2d(channels, embedding, 1)
        initial.he(self.image_decoder)
        initial.he(self.projection)
        self._text_sizes = {"width": text_width, "layers": text_layers}
        self.text_encoder = None
        if text_encoder:
            self.text_encoder = self.new_text_encoder().requires_grad_(False)
        else:
            self.register_buffer("text_features", torch.randn(len(tokens), embedding))

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

    def features(self, x: Tensor) -> Tensor:
        """Compute image features [N,embedding,h,w], not normalised."""
        x = self.image_encoder(x)
        x = functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        projected: Tensor = self.projection(self.image_decoder(x))
        return projected

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits [N,bins,h,w] and map [N,1,h,w], people per cell, in either mode."""
        image = functional.normalize(self.features(x), dim=1)
        text = functional.normalize(self.prompt_features(), dim=1)
        logits = self.logit_scale.exp() * functional.conv2d(image, text[:, :, None, None])
        anchors = logits.new_tensor(self.anchors).view(-1, 1, 1)
        return logits, (logits.softmax(dim=1) * anchors).sum(dim=1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Compute the map [N,1,h,w] of x [N,3,H,W]; in train mode, as published, (logits, map)."""
        logits, cells = self.scores(x)
        return (logits, cells) if self.training else cells
