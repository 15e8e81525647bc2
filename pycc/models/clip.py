"""The encoders of CLIP's RN50, with the published keys; its ViT-B/16 is ``pycc.models.clip_vit``.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

_BLOCKS = (3, 4, 6, 3)
_STRIDES = (1, 2, 2, 1)
_EXPANSION = 4

Prompt = Literal["word", "number"]

_START, _END = 49406, 49407

PROMPTS: dict[Prompt, tuple[tuple[int, ...], ...]] = {
    "word": (
        (_START, 997, 533, 871, 2533, 269, _END),  # There is no person.
        (_START, 997, 533, 637, 2533, 269, _END),  # There is one person.
        (_START, 997, 631, 1237, 1047, 269, _END),  # There are two people.
        (_START, 997, 631, 2097, 1047, 269, _END),  # There are three people.
        (_START, 997, 631, 750, 1126, 2721, 1047, 269, _END),  # There are more than four people.
    ),
    "number": (
        (_START, 997, 533, 271, 2533, 269, _END),  # There is 0 person.
        (_START, 997, 533, 272, 2533, 269, _END),  # There is 1 person.
        (_START, 997, 631, 273, 1047, 269, _END),  # There are 2 people.
        (_START, 997, 631, 274, 1047, 269, _END),  # There are 3 people.
        (_START, 997, 631, 750, 1126, 275, 1047, 269, _END),  # There are more than 4 people.
    ),
}
"""CLIP's byte-pair ids of five sentences. The sentence "more than four" also covers
exactly four."""

_LEFT_OUT = frozenset(
    {"logit_scale", "input_resolution", "context_length", "vocab_size", "visual.proj"}
)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with batch norms, and a shortcut.

    x [N,inputs,H,W] -> [N,outputs,H//stride,W//stride]. Instead of strided convolutions CLIP uses
    average pooling: after the 3x3 convolution, and before the shortcut's 1x1 convolution, which
    exists only if the block changes the shape.
    """

    downsample: nn.Sequential | None

    def __init__(self, inputs: int, width: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = _convolution(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _convolution(width, width, 3), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _convolution(width, outputs, 1), nn.BatchNorm2d(outputs)
        self.stride = stride
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                _convolution(inputs, outputs, 1), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Compute [N,outputs,h,w] of x [N,inputs,H,W]."""
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        y = functional.relu(self.bn2(self.conv2(y)), inplace=True)
        if self.stride > 1:
            y, x = functional.avg_pool2d(y, self.stride), functional.avg_pool2d(x, self.stride)
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return functional.relu(y, inplace=True)


class ImageEncoder(nn.Module):
    """CLIP's ResNet-50 without its attention pooling, and without stride in its last layer.

    x [N,3,H,W] -> [N,32·width,h,w] with h = ⌈H/2⌉ halved three times, rounded down, likewise w
    (stride 16; 2048 channels and 23,527,264 parameters at the published ``width`` of 64). Fresh
    weights are drawn as CLIP draws them: every block starts as its shortcut.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        half = width // 2
        self.conv1, self.bn1 = _convolution(3, half, 3, stride=2), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = _convolution(half, half, 3), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = _convolution(half, width, 3), nn.BatchNorm2d(width)
        self.channels = width
        """Number of output channels."""
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            self._layer(width << index, blocks, stride)
            for index, (blocks, stride) in enumerate(zip(_BLOCKS, _STRIDES, strict=True))
        )
        for module in self.modules():
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)

    def _layer(self, width: int, blocks: int, stride: int) -> nn.Sequential:
        inputs, self.channels = self.channels, _EXPANSION * width
        first = Bottleneck(inputs, width, self.channels, stride=stride)
        rest = (Bottleneck(self.channels, width, self.channels) for _ in range(blocks - 1))
        return nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Compute features [N,32·width,h,w] of x [N,3,H,W]."""
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        x = functional.relu(self.bn2(self.conv2(x)), inplace=True)
        x = functional.relu(self.bn3(self.conv3(x)), inplace=True)
        x = functional.avg_pool2d(x, 2)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x


class _Attention(nn.Module):
    """Self-attention; if ``causal``, a token sees itself and the tokens before it alone."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.heads, self.causal = heads, causal

    def forward(self, x: Tensor) -> Tensor:
        # x: [P,T,width]
        projected = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        projected = projected.view(*x.shape[:2], 3, self.heads, -1)
        query, key, value = projected.permute(2, 0, 3, 1, 4)  # [P,heads,T,·] each
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        attended: Tensor = self.out_proj(seen.transpose(1, 2).flatten(2))
        return attended


class _Perceptron(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.c_fc(x)
        projected: Tensor = self.c_proj(hidden * torch.sigmoid(1.702 * hidden))
        return projected


class _ResidualBlock(nn.Module):
    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.attn = _Attention(width, heads, causal=causal)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = _Perceptron(width)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        x = x + self.mlp(self.ln_2(x))
        return x


class Transformer(nn.Module):
    """CLIP's residual blocks of attention and perceptron: tokens [P,T,width] -> the same shape."""

    def __init__(self, width: int, layers: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.width = width
        self.resblocks = nn.Sequential(
            *(_ResidualBlock(width, heads, causal=causal) for _ in range(layers))
        )

    def initialise(self) -> None:
        """Draw the weights as CLIP draws those of its text encoder."""
        # The sum of all blocks keeps its scale.
        residual = (2 * len(self.resblocks) * self.width) ** -0.5
        for module in self.modules():
            if isinstance(module, _Attention):
                nn.init.normal_(module.in_proj_weight, std=self.width**-0.5)
                nn.init.normal_(module.out_proj.weight, std=residual)
            elif isinstance(module, _Perceptron):
                nn.init.normal_(module.c_fc.weight, std=(2 * self.width) ** -0.5)
                nn.init.normal_(module.c_proj.weight, std=residual)

    def forward(self, x: Tensor) -> Tensor:
        """Apply all blocks to tokens [P,T,width]."""
        blocks: Tensor = self.resblocks(x)
        return blocks


class TextEncoder(nn.Module):
    """CLIP's text transformer: token ids [P,T] -> features [P,embedding], not normalised.

    A prompt begins with id 49406 and ends with 49407, the highest id, at whose place its feature is
    read; it is padded with zeros. Tokens after the end change nothing, since a token sees only
    those before it: T may be anything from the longest prompt's length to ``context``. As published
    it has 63,690,240 parameters. Fresh weights are drawn as CLIP draws them.
    """

    def __init__(
        self,
        embedding: int = 1024,
        *,
        width: int = 512,
        layers: int = 12,
        heads: int = 8,
        context: int = 77,
        vocabulary: int = 49408,
    ) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.empty(context, width))
        self.text_projection = nn.Parameter(torch.empty(width, embedding))
        # With given values, the embedding does not draw 25 million numbers that are drawn below.
        self.token_embedding = nn.Embedding(
            vocabulary, width, _weight=torch.empty(vocabulary, width)
        )
        self.transformer = Transformer(width, layers, heads, causal=True)
        self.ln_final = nn.LayerNorm(width)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        self.transformer.initialise()

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute features [P,embedding] of prompts [P,T], integers."""
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        x = self.ln_final(self.transformer(x))
        ends = tokens.argmax(dim=1)
        features: Tensor = x[torch.arange(len(x), device=x.device), ends] @ self.text_projection
        return features


def _convolution(inputs: int, outputs: int, kernel: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


def adopt_clip(
    image: nn.Module, text: TextEncoder, state: Mapping[str, Tensor], *, network: str = "RN50"
) -> str | None:
    """Copy the encoders of OpenAI's archive of ``network``, in any precision.

    ``state`` names the image encoder's tensors ``visual.*`` and the text encoder's as here. The
    last layer of the image encoder (``visual.attnpool.*`` or ``visual.proj``), the temperature and
    three sizes are left out. Returns a description of what was copied, or None if there is no
    ``visual.*``; ValueError, listing keys, if the rest is not exactly what both encoders need.
    """
    if not any(key.startswith("visual.") for key in state):
        return None
    wanted = {f"visual.{key}": tensor for key, tensor in image.state_dict().items()}
    wanted.update(text.state_dict())
    used = {
        key: tensor
        for key, tensor in state.items()
        if key not in _LEFT_OUT and not key.startswith("visual.attnpool.")
    }
    # Numbers of batches are not weights: a copy without them is complete.
    missing = [key for key in wanted if key not in used and "num_batches_tracked" not in key]
    wrong = [
        f"{key} {list(tensor.shape)} instead of {list(wanted[key].shape)}"
        for key, tensor in used.items()
        if key in wanted and tensor.shape != wanted[key].shape
    ]
    coded = [
        f"{key} {tensor.dtype}"
        for key, tensor in used.items()
        if key in wanted and tensor.is_floating_point() != wanted[key].is_floating_point()
    ]
    unexpected = [key for key in used if key not in wanted]
    kinds = ("missing", "unexpected", "wrong shape", "wrong type")
    lists = (missing, unexpected, wrong, coded)
    problems = [f"{what} {_some(keys)}" for what, keys in zip(kinds, lists, strict=True) if keys]
    if problems:
        raise ValueError(
            f"clip: these are not the weights of CLIP's {network}: {'; '.join(problems)}"
        )
    full = {**wanted, **used}
    for module, prefix in ((image, "visual."), (text, "")):
        module.load_state_dict({key: full[prefix + key] for key in module.state_dict()})
    parts = [
        f"{sum(p.numel() for p in module.parameters()):,} parameters of its {name} encoder"
        for module, name in ((image, "image"), (text, "text"))
    ]
    return f"CLIP's {network}: {' and '.join(parts)}"


def _some(keys: Iterable[str], most: int = 3) -> str:
    listed = list(keys)
    rest = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + rest
