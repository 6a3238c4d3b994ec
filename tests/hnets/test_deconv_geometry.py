"""Sizes of transposed convolutions: what is planned is what torch makes, for every size and kernel."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.hnets.deconv_geometry import Axis, Deconv, axis_sizes, plan_deconvs, read_image_shape, read_kernel_sizes

SIZES, LAYERS, KERNELS = range(1, 65), range(2, 7), range(1, 8)
STEPS = {pair for size, num in itertools.product(SIZES, LAYERS) for pair in itertools.pairwise(axis_sizes(size, num))}


@pytest.mark.parametrize(
    ("size", "num_layers", "sizes"),
    [
        (28, 5, [4, 4, 7, 14, 28]),
        (28, 2, [14, 28]),
        (32, 4, [4, 8, 16, 32]),
        (64, 6, [4, 4, 8, 16, 32, 64]),
        (7, 3, [4, 4, 7]),
        (8, 2, [4, 8]),
        (6, 4, [6, 6, 6, 6]),
        (1, 3, [1, 1, 1]),
    ],
)
def test_the_rule(size, num_layers, sizes):
    assert axis_sizes(size, num_layers) == sizes


@pytest.mark.parametrize("num_layers", LAYERS)
def test_each_layer_doubles_or_keeps_the_size(num_layers):
    for size in SIZES:
        sizes = axis_sizes(size, num_layers)
        assert len(sizes) == num_layers
        assert sizes[-1] == size
        for before, after in itertools.pairwise(sizes):
            if before == after:
                assert -(-after // 2) < 4
            else:
                assert before >= 4
                assert after in (2 * before - 1, 2 * before)


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_axis_is_what_torch_makes(kernel):
    """All steps between sizes that occur for images of 1 to 64 pixels and 2 to 6 layers."""
    assert len(STEPS) == 6 + 58  # sizes 1 to 6 are kept, 7 to 64 come from half as many
    for in_size, out_size in STEPS:
        if kernel == 1 and in_size != out_size:
            with pytest.raises(ArgumentError, match="kernel_size: is 1 in a layer that doubles the size .* at least 2"):
                Axis.plan(in_size, out_size, kernel)
            continue
        x = Axis.plan(in_size, out_size, kernel)
        assert (x.in_size, x.out_size, x.kernel, x.stride) == (
            in_size,
            out_size,
            kernel,
            1 if in_size == out_size else 2,
        )
        layer = Deconv(1, 1, x, Axis.plan(1, 1, 1))
        assert layer.weight_shape == (1, 1, kernel, 1)
        full = F.conv_transpose2d(
            torch.ones(1, 1, in_size, 1),
            torch.ones(1, 1, kernel, 1),
            None,
            (x.stride, 1),
            (x.padding, 0),
            (x.output_padding, 0),
        )
        # Cut by at most one pixel, and only an even kernel that keeps the size.
        surplus = full.shape[2] - out_size
        assert surplus == (1 if x.stride == 1 and kernel % 2 == 0 else 0)
        taps = layer(torch.ones(1, 1, in_size, 1), torch.ones(1, 1, kernel, 1), None)
        assert taps.shape == (1, 1, out_size, 1)
        assert torch.equal(taps, full[:, :, :out_size])
        assert taps.min() >= 1, "a pixel without input"
        assert x.mean_taps == pytest.approx(float(taps.mean()), rel=1e-6)


@given(st.data())
def test_a_plan_in_two_dimensions(data):
    size = st.integers(1, 64)
    width, height, num_layers = data.draw(size), data.draw(size), data.draw(st.integers(2, 6))
    kernel = st.integers(2, 7)
    kernels = data.draw(st.lists(st.tuples(kernel, kernel), min_size=num_layers - 1, max_size=num_layers - 1))
    channels = data.draw(st.lists(st.integers(1, 3), min_size=num_layers, max_size=num_layers))
    start, layers = plan_deconvs(width, height, channels, kernels)
    image = torch.ones(2, channels[0], *start)
    xs, ys = axis_sizes(width, num_layers), axis_sizes(height, num_layers)
    assert start == (xs[0], ys[0])
    for i, layer in enumerate(layers, 1):
        assert layer.weight_shape == (channels[i - 1], channels[i], *kernels[i - 1])
        out = layer(torch.ones_like(image), torch.ones(layer.weight_shape), torch.ones(channels[i]))
        assert out.shape == (2, channels[i], xs[i], ys[i])
        products = out - 1  # the bias
        assert products.min() >= 1
        assert layer.mean_fan_in == pytest.approx(float(products.mean()), rel=1e-5)
        image = out
    assert image.shape == (2, channels[-1], width, height)


# ---------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("kernel_size", "kernels"),
    [
        (5, [(5, 5), (5, 5)]),
        ((4, 3), [(4, 3), (4, 3)]),
        ([5, 3], [(5, 5), (3, 3)]),
        ([5, (3, 2)], [(5, 5), (3, 2)]),
        ([[5, 4], (3, 2)], [(5, 4), (3, 2)]),
    ],
)
def test_forms_of_kernel_size(kernel_size, kernels):
    assert read_kernel_sizes(kernel_size, 2) == kernels


@pytest.mark.parametrize(
    ("kernel_size", "error", "message"),
    [
        (0, ArgumentError, "is or has 0, with an entry below 1"),
        ((3, -1), ArgumentError, r"is or has \(3, -1\), with an entry below 1"),
        (
            [3],
            ArgumentError,
            r"is a list of 1 entries; pass one for each of the 2 transposed convolutions \(num_layers - 1\)",
        ),
        ([3, 3, 3], ArgumentError, "is a list of 3 entries"),
        ((3, 3, 3), ArgumentTypeError, r"is or has \(3, 3, 3\), a tuple; pass a number or a tuple \(k_x, k_y\)"),
        (2.5, ArgumentTypeError, "is or has 2.5, a"),
        ("3", ArgumentTypeError, "is or has '3', a"),
        (None, ArgumentTypeError, "is or has None, a"),
        (True, ArgumentTypeError, "is or has True, a"),
    ],
)
def test_refused_kernel_sizes(kernel_size, error, message):
    with pytest.raises(error, match=f"kernel_size: .*{message}"):
        read_kernel_sizes(kernel_size, 2)


@pytest.mark.parametrize(
    ("shape", "expected"), [((8, 4), (8, 4, 1)), ([8, 4, 3], (8, 4, 3)), (torch.Size([8, 4]), (8, 4, 1))]
)
def test_forms_of_image_shape(shape, expected):
    assert read_image_shape(shape) == expected


@pytest.mark.parametrize("shape", [8, (8,), (8, 8, 1, 1), (0, 8), (8.0, 8), (True, 8), "88", None])
def test_refused_image_shapes(shape):
    with pytest.raises(ArgumentError, match=r"hyper_img_shape: is .*\(width, height\) or \(width, height, channels\)"):
        read_image_shape(shape)


@given(st.tuples(st.integers(1, 20), st.integers(1, 20)) | st.tuples(*[st.integers(1, 9)] * 3), st.integers(1, 10_000))
def test_the_shape_that_the_error_gives_would_do(shape, num_outputs):
    num_pixels = torch.Size(shape).numel()
    if num_pixels >= num_outputs:
        assert read_image_shape(shape, num_outputs)[: len(shape)] == shape
        return
    message = f"has {num_pixels} pixels for {num_outputs} weights; pass .* or larger"
    with pytest.raises(ArgumentError, match=message) as caught:
        read_image_shape(shape, num_outputs)
    found = str(caught.value).split("; pass ")[1].removesuffix(" or larger.")
    suggested = tuple(int(n) for n in found.strip("()").split(","))
    assert len(suggested) == len(shape)
    read_image_shape(suggested, num_outputs)
