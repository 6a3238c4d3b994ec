"""The deconvolutional hypernetwork: equal to a network put together from PyTorch's layers, and its options."""

from __future__ import annotations

import itertools
import logging
import math

import pytest
import torch
from torch import nn

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.hnets import ChunkedHDeconv, HDeconv
from bayeshnet.hnets.deconv_geometry import axis_sizes
from bayeshnet.layers import SelfAttnLayerV2

from .factories import wake_attention

SHAPES = [[10, 5], [10]]  # 60 weights


def small(**kwargs):
    options = {"num_layers": 3, "num_filters": [9, 4], "kernel_size": 3, "sa_units": (0, 1), "uncond_in_size": 2}
    options |= {"cond_in_size": 0, "hyper_img_shape": (8, 8), **kwargs}
    return wake_attention(HDeconv(SHAPES, **options).double())


def flat(hnet, *args, **kwargs):
    return hnet(*args, **kwargs, ret_format="flattened")


def noise(batch=4, size=2):
    return torch.randn(batch, size, dtype=torch.float64)


class Cut(nn.Module):
    def __init__(self, width, height):
        super().__init__()
        self.size = width, height

    def forward(self, x):
        return x[:, :, : self.size[0], : self.size[1]]


def torch_settings(in_size, out_size, kernel):
    """Stride, padding and output padding, found by trying."""
    stride = 1 if in_size == out_size else 2
    for padding, output_padding in itertools.product(range(kernel), range(stride)):
        if (in_size - 1) * stride - 2 * padding + kernel + output_padding == out_size:
            return stride, padding, output_padding
    return stride, (kernel - 1) // 2, 0  # stride 1, even kernel: one pixel more


def put_together(hnet, filters, kernels, activation, batch_norm=False, bias=True):
    """The network that the description says, of PyTorch's layers, with the weights of ``hnet`` in table order."""
    width, height, channels = hnet.hyper_img_shape
    records = list(zip(hnet.param_table, hnet.internal_params, strict=True))
    weights = iter([p.detach() for r, p in records if r.name != "embedding"])
    norms = [nn.BatchNorm2d(num) for num in filters] if batch_norm else []
    for norm in norms:
        norm.weight, norm.bias = nn.Parameter(next(weights)), nn.Parameter(next(weights))
    xs, ys = axis_sizes(width, len(filters) + 1), axis_sizes(height, len(filters) + 1)
    modules: list[nn.Module] = []
    for i in range(len(filters) + 1):
        if i == 0:
            first = filters[0] * xs[0] * ys[0]
            layer: nn.Module = nn.Linear((hnet.uncond_in_size or 0) + (hnet.cond_in_size or 0), first, bias=bias)
            after: list[nn.Module] = [nn.Unflatten(1, (filters[0], xs[0], ys[0]))]
        else:
            (k_x, k_y), out = kernels[i - 1], [*filters, channels][i]
            settings = zip(torch_settings(xs[i - 1], xs[i], k_x), torch_settings(ys[i - 1], ys[i], k_y), strict=True)
            layer = nn.ConvTranspose2d(filters[i - 1], out, (k_x, k_y), *settings, bias=bias)
            after = [Cut(xs[i], ys[i])]
        layer.weight = nn.Parameter(next(weights))
        if bias:
            layer.bias = nn.Parameter(next(weights))
        modules += [layer, *after]
        if i < len(filters):
            modules += norms[i : i + 1]
            modules += [] if activation is None else [activation]
            if i in hnet.sa_units:
                tensors = [next(weights) for _ in range(7)]
                modules.append(SelfAttnLayerV2(filters[i], False, init_weights=tensors).double())
    assert next(weights, None) is None
    return nn.Sequential(*modules, nn.Flatten()).double()


# ---------------------------------------------------------------------- the map


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation_fn": None},
        {"activation_fn": nn.Tanh()},
        {"use_bias": False},
        {"sa_units": ()},
        {"sa_units": (1,)},
        {"kernel_size": 2},
        {"kernel_size": 5},
        {"kernel_size": (4, 3)},
        {"kernel_size": [(2, 5), 4]},
        {"hyper_img_shape": (7, 11)},
        {"hyper_img_shape": (5, 4, 3)},
        {"hyper_img_shape": (4, 4, 4), "kernel_size": 1},
        {"num_layers": 2, "num_filters": [3], "sa_units": (0,)},
        {"num_layers": 5, "num_filters": [4, 3, 5, 2], "sa_units": (1, 3), "hyper_img_shape": (28, 28)},
    ],
    ids=str,
)
def test_it_is_the_network_put_together_by_hand(options):
    hnet = small(**options)
    num = options.get("num_layers", 3) - 1
    kernel = options.get("kernel_size", 3)
    kernels = [(k, k) if isinstance(k, int) else k for k in (kernel if isinstance(kernel, list) else [kernel] * num)]
    other = put_together(
        hnet,
        options.get("num_filters", [9, 4]),
        kernels,
        options.get("activation_fn", nn.ReLU()),
        bias=options.get("use_bias", True),
    )
    z = noise()
    out = flat(hnet, z)
    assert out.shape == (4, 60)
    torch.testing.assert_close(out, other(z)[:, :60])
    # The same gradients with respect to the input.
    direction = torch.randn_like(out)
    grads = []
    for function in (lambda x: flat(hnet, x), lambda x: other(x)[:, :60]):
        x = z.clone().requires_grad_()
        grads.append(torch.autograd.grad((function(x) * direction).sum(), x)[0])
    torch.testing.assert_close(*grads)


def test_the_example_with_28_pixels():
    """Paddings written out: 4, 4, 7, 14 and 28 pixels with kernels of 5."""
    hnet = HDeconv([[28, 28]], (28, 28), 2, 0, num_filters=[4, 3, 2, 2], sa_units=()).double()
    w = [p.detach() for p in hnet.internal_params]
    z = noise()
    x = (z @ w[0].T + w[1]).view(4, 4, 4, 4).relu()
    x = nn.functional.conv_transpose2d(x, w[2], w[3], stride=1, padding=2).relu()
    x = nn.functional.conv_transpose2d(x, w[4], w[5], stride=2, padding=2, output_padding=0).relu()
    assert x.shape == (4, 2, 7, 7)
    x = nn.functional.conv_transpose2d(x, w[6], w[7], stride=2, padding=2, output_padding=1).relu()
    x = nn.functional.conv_transpose2d(x, w[8], w[9], stride=2, padding=2, output_padding=1)
    assert x.shape == (4, 1, 28, 28)
    torch.testing.assert_close(hnet(z, ret_format="stacked")[0], x[:, 0])


def test_pixels_are_the_weights_channel_by_channel_and_row_by_row():
    hnet = HDeconv([[3, 5, 4]], (5, 4, 3), 2, 0, num_layers=2, num_filters=[2], sa_units=())
    weights = [torch.zeros_like(p) for p in hnet.internal_params]
    weights[-1][:] = torch.tensor([1.0, 2.0, 3.0])  # the bias of the last layer: one number per channel
    (out,) = hnet(torch.zeros(1, 2), weights=weights)
    assert torch.equal(out, torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1).expand(3, 5, 4))
    # Width is the first dimension: a kernel that is long in x smears along it.
    hnet = HDeconv([[5, 4]], (5, 4), 2, 0, num_layers=2, num_filters=[1], kernel_size=(3, 1), sa_units=())
    weights = [torch.zeros_like(p) for p in hnet.internal_params]
    weights[1].view(5, 4)[2, 1] = 1.0  # the bias of the first layer: one pixel of a 5 x 4 image
    weights[2].fill_(1.0)
    (out,) = hnet(torch.zeros(1, 2), weights=weights)
    assert out.nonzero().tolist() == [[1, 1], [2, 1], [3, 1]]


@pytest.mark.parametrize("batch", [1, 4])
def test_batch_norm(batch):
    hnet = small(use_batch_norm=True)
    for layer_params in (
        p for r, p in zip(hnet.param_table, hnet.internal_params, strict=True) if r.name == "bn_scale"
    ):
        nn.init.uniform_(layer_params, 0.5, 2.0)
    other = put_together(hnet, [9, 4], [(3, 3)] * 2, nn.ReLU(), batch_norm=True)
    for _ in range(2):  # statistics over samples and pixels
        z = noise(6)
        torch.testing.assert_close(flat(hnet, z), other(z)[:, :60])
    for layer, norm in zip(hnet.batchnorm_layers, (m for m in other if isinstance(m, nn.BatchNorm2d)), strict=True):
        torch.testing.assert_close(layer.get_stats(), (norm.running_mean, norm.running_var))
    hnet.eval()
    other.eval()
    z = noise(batch)
    torch.testing.assert_close(flat(hnet, z), other(z)[:, :60])
    # `condition` selects among several sets of statistics.
    for layer in hnet.batchnorm_layers:
        layer.checkpoint_stats()
    torch.testing.assert_close(flat(hnet, z, condition=0), other(z)[:, :60])
    assert not torch.allclose(flat(hnet, z, condition=1), other(z)[:, :60])
    with pytest.raises(ArgumentError, match="stats_id: is needed"):
        hnet(z)


def test_input_is_the_unconditional_one_before_the_embedding():
    hnet = small(cond_in_size=3, num_cond_embs=2)
    other = put_together(hnet, [9, 4], [(3, 3)] * 2, nn.ReLU())
    z, emb = noise(), hnet.get_cond_in_emb(1)
    expected = other(torch.cat([z, emb.expand(4, 3)], dim=1))[:, :60]
    torch.testing.assert_close(flat(hnet, z, cond_id=1), expected)
    torch.testing.assert_close(flat(hnet, z, emb[None]), expected)
    torch.testing.assert_close(flat(hnet, z[:1], cond_id=[1, 1]), expected[:1].expand(2, -1))


# ---------------------------------------------------------------------- attention


def test_default_units():
    options = {"cond_in_size": 3, "num_filters": None}
    units = [
        HDeconv(SHAPES, (8, 8), **{**options, "num_layers": n, "num_filters": [2] * (n - 1)}).sa_units
        for n in (2, 3, 4, 5)
    ]
    assert units == [(), (1,), (1,), (1, 3)]
    assert small(sa_units=[1, 0, 1]).sa_units == (0, 1)


def test_attention_without_gamma_has_no_effect():
    hnet = small()
    gammas = [p for r, p in zip(hnet.param_table, hnet.internal_params, strict=True) if r.name is None]
    z = noise()
    awake = flat(hnet, z)
    assert len(gammas) == 2
    for gamma in gammas:
        nn.init.zeros_(gamma)
    asleep = flat(hnet, z)
    without = small(sa_units=())
    without.overwrite_internal_params(
        [
            p.detach()
            for r, p in zip(hnet.param_table, hnet.internal_params, strict=True)
            if r.extra.get("info") != "self-attention"
        ]
    )
    torch.testing.assert_close(asleep, flat(without, z))
    assert not torch.allclose(awake, asleep)


def test_gamma_starts_at_zero():
    hnet = HDeconv(SHAPES, (8, 8), num_layers=3, num_filters=[9, 4], sa_units=(0,))
    gamma = next(p for r, p in zip(hnet.param_table, hnet.internal_params, strict=True) if r.name is None)
    assert gamma.shape == (1,)
    assert gamma == 0


# ---------------------------------------------------------------------- spectral norm


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("external", [False, True])
def test_spectral_norm(mode, external):
    """It is the network whose matrices and kernels have been divided by their largest singular value."""
    options = {"num_filters": [16, 4], "cond_in_size": 3, "use_batch_norm": True}
    hnet, plain = small(use_spectral_norm=True, **options), small(**options)
    values = []
    for record, param in zip(hnet.param_table, hnet.internal_params, strict=True):
        value = param.detach().clone()
        if record.name == "weight":
            # Kernels of transposed convolutions have their output channels second.
            deconv = value.dim() == 4 and value.shape[-1] == 3
            matrix = (value.transpose(0, 1) if deconv else value).flatten(1)
            value = value / torch.linalg.svdvals(matrix)[0]
            again = (value.transpose(0, 1) if deconv else value).flatten(1)
            assert torch.linalg.matrix_norm(again, 2) == pytest.approx(1.0)
        values.append(value)
    plain.overwrite_internal_params(values)
    plain.train(mode == "train")
    hnet.train(mode == "train")
    z = noise()
    weights = [p.detach().clone() for p in hnet.internal_params] if external else None
    torch.testing.assert_close(flat(hnet, z, cond_id=0, weights=weights), flat(plain, z, cond_id=0))
    assert not torch.allclose(values[-2], hnet.internal_params[-2])  # the parameters stay as they are


# ---------------------------------------------------------------------- table, initialisation


def test_the_table():
    hnet = small(cond_in_size=3, num_cond_embs=2, use_batch_norm=True, sa_units=(1,))
    assert [(r.name, list(r.shape), r.layer) for r in hnet.param_table] == [
        ("embedding", [3], 0),
        ("embedding", [3], 0),
        ("bn_scale", [9], 2),
        ("bn_shift", [9], 2),
        ("bn_scale", [4], 4),
        ("bn_shift", [4], 4),
        ("weight", [9 * 16, 5], 1),
        ("bias", [9 * 16], 1),
        ("weight", [9, 4, 3, 3], 3),
        ("bias", [4], 3),
        ("weight", [1, 4, 1, 1], 4),
        ("bias", [1], 4),
        ("weight", [1, 4, 1, 1], 4),
        ("bias", [1], 4),
        ("weight", [4, 4, 1, 1], 4),
        ("bias", [4], 4),
        (None, [1], 4),
        ("weight", [4, 1, 3, 3], 5),
        ("bias", [1], 5),
    ]
    assert [r.conditional for r in hnet.param_table] == [True] * 2 + [False] * 17
    assert (hnet.has_fc_out, hnet.has_linear_out, hnet.has_bias) == (False, True, True)
    assert (hnet.uncond_in_size, hnet.cond_in_size, hnet.num_known_conds) == (2, 3, 2)
    assert hnet.distillation_targets() is None


def test_default_filters():
    hnet = HDeconv(SHAPES, (8, 8), cond_in_size=1, num_layers=4, sa_units=())
    assert [s for s in hnet.param_shapes if len(s) == 4] == [[512, 256, 5, 5], [256, 128, 5, 5], [128, 1, 5, 5]]


def test_initial_weights_have_the_scale_of_their_fan_in():
    hnet = HDeconv([[40, 40]], (40, 40), 30, 0, num_layers=3, num_filters=[40, 30], kernel_size=4, sa_units=(1,))
    # Along one dimension 10 pixels become 20 and 20 become 40 with stride 2 and a kernel of 4: two taps, all but the
    # two outermost pixels, which have one.
    taps = [(20 * 2 - 2) / 20, (40 * 2 - 2) / 40]
    fans = [30, 40 * taps[0] ** 2, 30, 30, 30, 30 * taps[1] ** 2]  # query, key and value between the last two
    weights = [p.detach() for r, p in zip(hnet.param_table, hnet.internal_params, strict=True) if r.name == "weight"]
    biases = [p.detach() for r, p in zip(hnet.param_table, hnet.internal_params, strict=True) if r.name == "bias"]
    for weight, bias, fan in zip(weights, biases, fans, strict=True):
        bound = 1 / math.sqrt(fan)
        assert weight.abs().max() <= bound * (1 + 1e-6)
        assert bias.abs().max() <= bound * (1 + 1e-6)
        # Of a uniform distribution the sample variance has the standard error sqrt(0.8 / n) var.
        assert abs(float(weight.var()) / (bound**2 / 3) - 1) < 4 * math.sqrt(0.8 / weight.numel())


def test_it_logs_at_info_if_verbose(caplog, capsys):
    with caplog.at_level(logging.INFO):
        HDeconv(SHAPES, (8, 8), num_layers=2, num_filters=[2], sa_units=())
        HDeconv(SHAPES, (8, 8), num_layers=2, num_filters=[2], sa_units=(), verbose=False)
        ChunkedHDeconv(SHAPES, (8, 4), num_layers=2, num_filters=[2], verbose=False)
    # 8 + (2 * 16 * 8 + 32) + (2 * 25 + 1)
    assert [r.message for r in caplog.records] == ["Created HDeconv: 60 outputs of 64 pixels, 347 weights."]
    assert capsys.readouterr() == ("", "")


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("cls", [HDeconv, ChunkedHDeconv])
@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"hyper_img_shape": 8}, ArgumentError, r"hyper_img_shape: is 8; pass positive numbers \(width, height\)"),
        ({"hyper_img_shape": (8.0, 8)}, ArgumentError, r"hyper_img_shape: is \(8.0, 8\)"),
        ({"num_layers": 1}, ArgumentError, "num_layers: is 1; pass at least 2"),
        ({"num_layers": 2.5}, ArgumentTypeError, "num_layers: is .*; pass an int"),
        (
            {"num_filters": [4]},
            ArgumentError,
            r"num_filters: is \[4\]; pass a list of 2 positive numbers \(num_layers - 1",
        ),
        ({"num_filters": [4, 0]}, ArgumentError, r"num_filters: is \[4, 0\]"),
        ({"num_filters": 4}, ArgumentTypeError, "num_filters: is 4, an int; pass a list of ints"),
        ({"num_filters": [4.0, 4]}, ArgumentTypeError, "num_filters: is .*; pass a list of ints"),
        ({"kernel_size": [3]}, ArgumentError, "kernel_size: is a list of 1 entries; pass one for each of the 2"),
        ({"kernel_size": "3"}, ArgumentTypeError, "kernel_size: is or has .*; pass a number or a tuple"),
        ({"kernel_size": (1, 3)}, ArgumentError, "kernel_size: is 1 in a layer that doubles the size"),
        (
            {"sa_units": (2,)},
            ArgumentError,
            r"sa_units: is \[2\]; pass numbers in 0..1, the layers before the last one",
        ),
        ({"sa_units": (1, 3, 0)}, ArgumentError, r"sa_units: is \[1, 3, 0\]; pass numbers in 0..1"),
        ({"sa_units": (-1,)}, ArgumentError, r"sa_units: is \[-1\]; pass numbers in"),
        ({"sa_units": 1}, ArgumentTypeError, "sa_units: is 1, an int; pass a list of ints"),
        ({"sa_units": (0.5,)}, ArgumentTypeError, "sa_units: is .*; pass a list of ints"),
        ({"cond_in_size": 0}, ArgumentError, "uncond_in_size: and cond_in_size are both 0"),
        ({"cond_in_size": -1}, ArgumentError, "cond_in_size: is -1; pass 0 or more"),
        ({"target_shapes": []}, ArgumentError, "target_shapes: is empty"),
    ],
)
def test_refused_configurations(cls, kwargs, error, message):
    options = {"target_shapes": SHAPES, "hyper_img_shape": (8, 8), "num_layers": 3, "num_filters": [4, 4], **kwargs}
    with pytest.raises(error, match=message):
        cls(**options)


def test_too_few_pixels():
    with pytest.raises(
        ArgumentError, match=r"hyper_img_shape: is \(6, 9\), which has 54 pixels for 60 weights; pass \(7, 10\)"
    ):
        HDeconv(SHAPES, (6, 9))
    with pytest.raises(ArgumentError, match=r"is \(3, 3, 2\), which has 18 pixels .*; pass \(6, 6, 2\) or larger"):
        HDeconv(SHAPES, (3, 3, 2))
