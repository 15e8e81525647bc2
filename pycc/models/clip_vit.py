"""The image encoder of CLIP's ViT-B/16, with the published keys and learnt prompts in every block.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021;
Jia et al., "Visual Prompt Tuning", ECCV 2022.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pycc.models.clip import Transformer

PATCH = 16
"""Pixels per token."""


class VisionTransformer(nn.Module):
    """CLIP's vision transformer without its last projection.

    x [N,3,H,W] -> [N,width,H//16,W//16]. The positional embedding, learnt on a square of ``window``
    pixels, is resized to other grids bicubically. Fresh weights are drawn as CLIP draws them.
    """

    def __init__(
        self, *, window: int = 224, width: int = 768, layers: int = 12, heads: int = 12
    ) -> None:
        super().__init__()
        self.side = window // PATCH
        """Tokens per side of the grid on which the positional embedding was learnt."""
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.positional_embedding = nn.Parameter(width**-0.5 * torch.randn(self.side**2 + 1, width))
        self.conv1 = nn.Conv2d(3, width, PATCH, stride=PATCH, bias=False)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, causal=False)
        self.ln_post = nn.LayerNorm(width)
        self.transformer.initialise()

    def positions(self, height: int, width: int) -> Tensor:
        """Compute positional embeddings [1+height*width,·]: the class token's, then row by row."""
        if (height, width) == (self.side, self.side):
            return self.positional_embedding
        first, grid = self.positional_embedding[:1], self.positional_embedding[1:]
        grid = grid.T.reshape(1, -1, self.side, self.side)
        grid = functional.interpolate(
            grid, (height, width), mode="bicubic", align_corners=False, antialias=False
        )
        return torch.cat([first, grid.flatten(2)[0].T])

    def forward(self, x: Tensor, prompts: Sequence[Tensor]) -> Tensor:
        """Compute features of x; ``prompts`` [P,width], one for each block, are read by it alone.

        A block sees its prompts as tokens between the class token and the patches; what it makes of
        them is dropped.
        """
        patches = self.conv1(x)
        number, channels, height, width = patches.shape
        first = self.class_embedding.to(patches).expand(number, 1, channels)
        tokens = torch.cat([first, patches.flatten(2).transpose(1, 2)], 1)  # [N,1+h·w,width]
        tokens = self.ln_pre(tokens + self.positions(height, width))
        for block, own in zip(self.transformer.resblocks, prompts, strict=True):
            shown = own.to(tokens).expand(number, *own.shape)
            seen = block(torch.cat([tokens[:, :1], shown, tokens[:, 1:]], 1))
            tokens = torch.cat([seen[:, :1], seen[:, 1 + len(own) :]], 1)
        features: Tensor = self.ln_post(tokens[:, 1:]).transpose(1, 2)
        # In the usual order in memory: the export of graphs for any number of images needs it.
        return features.contiguous().view(number, channels, height, width)
