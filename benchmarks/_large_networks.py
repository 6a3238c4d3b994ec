"""ResNets for images of 32 x 32 (He et al., 2016, in their form for CIFAR), and a CNN for scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ResNet", "digits_cnn", "images"]


class _Block(nn.Module):
    """Two convolutions beside a short cut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if channels != width or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet-18 with 11.2 million weights by default; narrower with other widths."""

    def __init__(self, widths: Sequence[int] = (64, 128, 256, 512), blocks: int = 2, classes: int = 10) -> None:
        super().__init__()
        channels = widths[0]
        self.conv = nn.Conv2d(3, channels, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        stages: list[nn.Module] = []
        for i, width in enumerate(widths):
            for j in range(blocks):
                stages.append(_Block(channels, width, 2 if i and not j else 1))
                channels = width
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stages(F.relu(self.bn(self.conv(x))))
        return self.fc(h.mean((2, 3)))


def digits_cnn() -> nn.Module:
    """A CNN with 109,410 weights."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(512, 200), nn.ReLU(), nn.Linear(200, 10)),
    )


def images(rows: int, size: int = 32) -> tuple[Tensor, Tensor]:
    """Noise with a bright column whose place is the class: inputs ``[rows, 3, size, size]`` and labels."""
    y = torch.randint(10, (rows,))
    x = torch.randn(rows, 3, size, size)
    x[torch.arange(rows), :, :, y] += 2.0
    return x, y
