"""HRNet-W48, the trunk of FIDTM and STEERER: four branches that keep their resolution.

Wang et al., "Deep High-Resolution Representation Learning for Visual Recognition", TPAMI 2020.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional

from pycc.models.backbone import take

WIDTHS: tuple[int, ...] = (48, 96, 192, 384)
"""Channels of the branches at strides 4, 8, 16 and 32."""
STEM = 64
"""Channels of the first two convolutions, and a quarter of those behind the first blocks."""
BLOCKS = 4
"""Residual blocks in the first part, and in each branch of a module."""
MODULES: tuple[int, ...] = (1, 4, 3)
"""Modules of two, three and four branches."""
_MOMENTUM = 0.01


class HRNet(nn.Module):
    """The trunk: x [N,3,H,W] -> features at strides 4, 8, 16, 32, [N,WIDTHS[b],h_b,w_b].

    Sides are halved upwards. ``fuse_last`` False leaves out the exchange between branches at the
    end of the last module.
    """

    def __init__(self, *, fuse_last: bool = True) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(3, STEM, 3, 2), _norm(STEM)
        self.conv2, self.bn2 = _conv(STEM, STEM, 3, 2), _norm(STEM)
        wide = 4 * STEM
        self.layer1 = nn.Sequential(
            *(_Bottleneck(STEM if n == 0 else wide, STEM) for n in range(BLOCKS))
        )
        # The second branch is made one level deeper, as in the published keys.
        first = nn.Sequential(*_layer(wide, WIDTHS[0], 1))
        self.transition1 = nn.ModuleList([first, nn.Sequential(_halved(wide, WIDTHS[1]))])
        self.stage2 = self._stage(2, MODULES[0])
        self.transition2 = _transition(2)
        self.stage3 = self._stage(3, MODULES[1])
        self.transition3 = _transition(3)
        self.stage4 = self._stage(4, MODULES[2], fuse_last=fuse_last)

    @staticmethod
    def _stage(branches: int, modules: int, *, fuse_last: bool = True) -> nn.ModuleList:
        return nn.ModuleList(
            _Module(branches, fuse=fuse_last or n < modules - 1) for n in range(modules)
        )

    def features(self, x: Tensor) -> list[Tensor]:
        """Compute the features of the four branches of x [N,3,H,W]."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer1(functional.relu(self.bn2(self.conv2(x))))
        branches = [make(x) for make in self.transition1]
        branches = _through(self.stage2, branches)
        branches = _through(self.stage3, [*branches, self.transition2[-1](branches[-1])])
        return _through(self.stage4, [*branches, self.transition3[-1](branches[-1])])


def adopt_hrnet(net: HRNet, state: Mapping[str, Tensor]) -> str | None:
    """Copy the trunk of HRNet-W48 trained on ImageNet, under the published names.

    Its classifier (``incre_modules``, ``downsamp_modules``, ``final_layer``, ``classifier``) is
    left out. Returns a description of what was copied, or None if it is not an HRNet. ValueError
    if a tensor is missing, has another shape (as in an HRNet of another width) or holds integers.
    """
    if not {"transition1.0.0.weight", "stage2.0.branches.0.0.conv1.weight"} <= state.keys():
        return None
    keys = {key: key for key in net.state_dict() if not key.startswith("last_layer.")}
    number = take("hrnet", net, state, keys, trunk="the trunk is HRNet-W48")
    return f"the trunk of HRNet-W48 ({number} of {len(state)} tensors)"


def _through(stage: nn.ModuleList, branches: list[Tensor]) -> list[Tensor]:
    for module in stage:
        branches = module(branches)
    return branches


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, momentum=_MOMENTUM)


def _layer(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [_conv(inputs, outputs, 3, stride), _norm(outputs), nn.ReLU(inplace=True)]


def _halved(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(*_layer(inputs, outputs, 2))


def _transition(branches: int) -> nn.ModuleList:
    """Make one more branch from the lowest; the others pass through, without keys."""
    new = nn.Sequential(_halved(WIDTHS[branches - 1], WIDTHS[branches]))
    return nn.ModuleList([*(nn.Identity() for _ in range(branches)), new])


class _Bottleneck(nn.Module):
    """A residual block of three convolutions, in which the middle one has a quarter as many."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        outputs = 4 * channels
        self.conv1, self.bn1 = _conv(inputs, channels, 1), _norm(channels)
        self.conv2, self.bn2 = _conv(channels, channels, 3), _norm(channels)
        self.conv3, self.bn3 = _conv(channels, outputs, 1), _norm(outputs)
        self.downsample: nn.Module = nn.Identity()
        if inputs != outputs:
            self.downsample = nn.Sequential(_conv(inputs, outputs, 1), _norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.relu(self.bn1(self.conv1(x)))
        hidden = functional.relu(self.bn2(self.conv2(hidden)))
        return functional.relu(self.bn3(self.conv3(hidden)) + self.downsample(x))


class _Block(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(channels, channels, 3), _norm(channels)
        self.conv2, self.bn2 = _conv(channels, channels, 3), _norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(hidden)) + x)


class _Module(nn.Module):
    """Branches of residual blocks, then an exchange in which each becomes the sum of all."""

    def __init__(self, branches: int, *, fuse: bool) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(_Block(width) for _ in range(BLOCKS))) for width in WIDTHS[:branches]
        )
        self.fuse_layers: nn.ModuleList | None = None
        if fuse:
            self.fuse_layers = nn.ModuleList(
                nn.ModuleList(_exchange(source, goal) for source in range(branches))
                for goal in range(branches)
            )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        parts = [branch(x) for branch, x in zip(self.branches, features, strict=True)]
        if self.fuse_layers is None:
            return parts
        fused = []
        for own, layers in zip(parts, self.fuse_layers, strict=True):
            assert isinstance(layers, nn.ModuleList)
            total: Tensor | None = None
            for layer, part in zip(layers, parts, strict=True):
                part = resized(layer(part), own)
                total = part if total is None else total + part
            assert total is not None
            fused.append(functional.relu(total))
        return fused


def _exchange(source: int, goal: int) -> nn.Module:
    """Convert the features of one branch for another: fewer channels, or halved several times."""
    if source == goal:
        return nn.Identity()
    inputs, outputs = WIDTHS[source], WIDTHS[goal]
    if source > goal:
        return nn.Sequential(_conv(inputs, outputs, 1), _norm(outputs))
    steps = [_halved(inputs, inputs) for _ in range(goal - source - 1)]
    return nn.Sequential(*steps, nn.Sequential(_conv(inputs, outputs, 3, 2), _norm(outputs)))


def resized(x: Tensor, like: Tensor) -> Tensor:
    """Resize x [N,C,h,w] to another tensor's height and width: bilinear, half-pixel centres."""
    size = like.shape[2:]
    if x.shape[2:] == size:
        return x
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
