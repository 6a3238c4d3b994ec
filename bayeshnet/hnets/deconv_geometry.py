"""Sizes, strides and paddings of the transposed convolutions of a hypernetwork whose output is an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from bayeshnet.checks import shown
from bayeshnet.errors import ArgumentError, ArgumentTypeError

__all__ = ["Axis", "Deconv", "axis_sizes", "plan_deconvs", "read_image_shape", "read_kernel_sizes"]

_SMALLEST = 4


@dataclass(frozen=True, slots=True)
class Axis:
    """A transposed convolution along one dimension of the image.

    Attributes:
        in_size: Pixels that come in.
        out_size: Pixels that go out.
        kernel: Size of the kernel.
        stride: 1 or 2.
        padding: As ``torch.nn.functional.conv_transpose2d`` takes it.
        output_padding: Likewise.

    Example:
        >>> Axis.plan(7, 14, 5).stride
        2
    """

    in_size: int
    out_size: int
    kernel: int
    stride: int
    padding: int
    output_padding: int

    @classmethod
    def plan(cls, in_size: int, out_size: int, kernel: int) -> Axis:
        """Find the padding with which a kernel maps one size to the other, or to one pixel more (which is cut off).

        Raises:
            ArgumentError: If pixels would be left without input.

        Example:
            >>> Axis.plan(7, 14, 5)
            Axis(in_size=7, out_size=14, kernel=5, stride=2, padding=2, output_padding=1)
        """
        if in_size == out_size:
            # An even kernel makes one pixel more, whatever the padding.
            return cls(in_size, out_size, kernel, 1, (kernel - 1) // 2, 0)
        if kernel == 1:
            raise ArgumentError(
                "kernel_size: is 1 in a layer that doubles the size of the image, so that every second pixel would "
                "have no input; pass at least 2."
            )
        # out = 2 (in - 1) + kernel - 2 padding + output_padding
        surplus = 2 * (in_size - 1) + kernel - out_size
        padding = (surplus + 1) // 2
        return cls(in_size, out_size, kernel, 2, padding, 2 * padding - surplus)

    @property
    def mean_taps(self) -> float:
        """Mean over the output pixels of the number of input pixels that each is a sum over.

        Example:
            >>> Axis.plan(4, 4, 1).mean_taps, Axis.plan(2, 2, 3).mean_taps
            (1.0, 2.0)
        """
        return fmean(self.spread([1.0] * self.in_size))

    def spread(self, power: Sequence[float]) -> list[float]:
        """Return for each output pixel the sum over the input pixels that go into it.

        Args:
            power: A number for each input pixel.

        Example:
            >>> Axis.plan(2, 4, 3).spread([1.0, 5.0])
            [1.0, 6.0, 5.0, 5.0]
        """
        out = [0.0] * self.out_size
        for i, value in enumerate(power):
            start = i * self.stride - self.padding
            for j in range(max(start, 0), min(start + self.kernel, self.out_size)):
                out[j] += value
        return out


@dataclass(frozen=True, slots=True)
class Deconv:
    """One transposed convolution of the network.

    Attributes:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        x: What happens along the width.
        y: What happens along the height.

    Example:
        >>> Deconv(8, 3, Axis.plan(4, 8, 5), Axis.plan(4, 8, 3)).weight_shape
        (8, 3, 5, 3)
    """

    in_channels: int
    out_channels: int
    x: Axis
    y: Axis

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Shape of the kernel, as ``conv_transpose2d`` takes it."""
        return self.in_channels, self.out_channels, self.x.kernel, self.y.kernel

    @property
    def mean_fan_in(self) -> float:
        """Mean over the output pixels of the number of products that each is a sum of."""
        return self.in_channels * self.x.mean_taps * self.y.mean_taps

    def __call__(self, image: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Map images ``[R, in_channels, width, height]`` to those of the next layer."""
        out = F.conv_transpose2d(
            image,
            weight,
            bias,
            (self.x.stride, self.y.stride),
            (self.x.padding, self.y.padding),
            (self.x.output_padding, self.y.output_padding),
        )
        size = (self.x.out_size, self.y.out_size)
        return out if out.shape[-2:] == size else out[..., : size[0], : size[1]]


def axis_sizes(size: int, num_layers: int) -> list[int]:
    """Size of the image after each layer, along one dimension.

    Worked out backwards from the output: each layer roughly doubles the size, unless its input would be smaller than
    4 pixels; then it keeps the size.

    Args:
        size: That of the output.
        num_layers: Number of layers, the first (fully-connected) one included.

    Example:
        >>> axis_sizes(28, 5)
        [4, 4, 7, 14, 28]
    """
    sizes = [size]
    for _ in range(num_layers - 1):
        half = -(-sizes[0] // 2)
        sizes.insert(0, half if half >= _SMALLEST else sizes[0])
    return sizes


def plan_deconvs(
    width: int, height: int, channels: Sequence[int], kernels: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int], list[Deconv]]:
    """Lay out the transposed convolutions.

    Args:
        width: Of the last image.
        height: Of the last image.
        channels: Number of channels after each layer, the fully-connected one first.
        kernels: Kernel of each transposed convolution.

    Returns:
        Size of the first image, and the convolutions.

    Example:
        >>> start, layers = plan_deconvs(28, 10, [8, 4, 1], [(5, 5), (3, 3)])
        >>> start, [layer.weight_shape for layer in layers]
        ((7, 5), [(8, 4, 5, 5), (4, 1, 3, 3)])
    """
    xs, ys = axis_sizes(width, len(channels)), axis_sizes(height, len(channels))
    layers = [
        Deconv(
            channels[i], channels[i + 1], Axis.plan(xs[i], xs[i + 1], kernel[0]), Axis.plan(ys[i], ys[i + 1], kernel[1])
        )
        for i, kernel in enumerate(kernels)
    ]
    return (xs[0], ys[0]), layers


def read_image_shape(hyper_img_shape: Any, num_outputs: int = 0) -> tuple[int, int, int]:
    """Width, height and number of channels of the last image.

    Args:
        hyper_img_shape: ``(width, height)`` or ``(width, height, channels)``.
        num_outputs: Number of weights that its pixels have to suffice for.

    Raises:
        ArgumentError: If it is anything else, or has too few pixels.

    Example:
        >>> read_image_shape((8, 4))
        (8, 4, 1)
    """
    sizes = list(hyper_img_shape) if isinstance(hyper_img_shape, (tuple, list)) else []
    if len(sizes) not in (2, 3) or not all(isinstance(s, int) and not isinstance(s, bool) and s >= 1 for s in sizes):
        raise ArgumentError(
            f"hyper_img_shape: is {hyper_img_shape!r}; pass positive numbers (width, height) or (width, height, "
            "channels)."
        )
    width, height, channels = sizes[0], sizes[1], sizes[2] if len(sizes) == 3 else 1
    if width * height * channels < num_outputs:
        factor = math.sqrt(num_outputs / (width * height * channels))
        enough = [math.ceil(width * factor), math.ceil(height * factor), *sizes[2:]]
        raise ArgumentError(
            f"hyper_img_shape: is {tuple(sizes)}, which has {width * height * channels} pixels for {num_outputs} "
            f"weights; pass {tuple(enough)} or larger."
        )
    return width, height, channels


def read_kernel_sizes(kernel_size: Any, num: int) -> list[tuple[int, int]]:
    """Return the kernel ``(k_x, k_y)`` of each transposed convolution.

    Args:
        kernel_size: A number or a pair for all, or a list of numbers and pairs, one for each.
        num: How many there are.

    Raises:
        ArgumentError: If a list has another length or a size is below 1.
        ArgumentTypeError: If it is anything else.

    Example:
        >>> read_kernel_sizes([3, (5, 1)], 2)
        [(3, 3), (5, 1)]
    """
    entries = list(kernel_size) if isinstance(kernel_size, list) else [kernel_size] * num
    if len(entries) != num:
        raise ArgumentError(
            f"kernel_size: is a list of {len(entries)} entries; pass one for each of the {num} transposed convolutions "
            "(num_layers - 1), or a number or a tuple (k_x, k_y) for all."
        )
    kernels: list[tuple[int, int]] = []
    for entry in entries:
        pair = tuple(entry) if isinstance(entry, (tuple, list)) else (entry, entry)
        if len(pair) != 2 or not all(isinstance(k, int) and not isinstance(k, bool) for k in pair):
            raise ArgumentTypeError(f"kernel_size: is or has {shown(entry)}; pass a number or a tuple (k_x, k_y).")
        if min(pair) < 1:
            raise ArgumentError(f"kernel_size: is or has {entry!r}, with an entry below 1; pass 1 or more.")
        kernels.append((pair[0], pair[1]))
    return kernels
