# pyright: reportOptionalSubscript=false, reportOptionalIterable=false, reportGeneralTypeIssues=false

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.nn import functional as F

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.mnets import WRN, batched_forward

SMALL = {"in_shape": (9, 8, 2), "num_classes": 3, "num_feature_maps": (2, 2, 3, 3), "n": 2, "k": 1}


def names_and_layers(net):
    return [(m["name"], m["layer"]) for m in net.param_shapes_meta]


def draw(net, dtype=torch.float32):
    return [torch.randn(shape, dtype=dtype) for shape in net.param_shapes]


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"use_bias": False}, 36_479_184),
        ({"use_bias": False, "use_fc_bias": True}, 36_479_194),  # WRN-28-10 of the paper: 36.5 million
        ({"use_bias": False, "use_fc_bias": True, "n": 6, "k": 4}, 8_949_210),  # WRN-40-4: 8.9 million
        ({"use_bias": False, "use_fc_bias": True, "n": 2, "k": 8}, 10_961_370),  # WRN-16-8: 11.0 million
    ],
)
def test_known_sizes(options, size):
    assert WRN(**options, no_weights=True).num_params == size


def test_table():
    net = WRN(**SMALL)
    widths = [2] * 5 + [3] * 8
    assert net.param_shapes[:26] == [[width] for width in widths for _ in range(2)]
    assert net.param_shapes[26:28] == [
        [3, 2, 1, 1],
        [3, 3, 1, 1],
    ]  # stride 2 asks for one, with or without new channels
    assert net.param_shapes[28:32] == [[2, 2, 3, 3], [2], [2, 2, 3, 3], [2]]
    assert net.param_shapes[-2:] == [[3, 3], [3]]
    layers = [m["layer"] for m in net.param_shapes_meta]
    # 13 convolutions with batch norm, 2 skip connections and the output: each has a number, weight and bias share one.
    assert sorted(set(layers)) == list(range(2 * 13 + 2 + 1))
    assert [layer for name, layer in names_and_layers(net) if name == "bn_scale"][:3] == [1, 3, 5]
    assert [layer for name, layer in names_and_layers(net) if name == "bias"][:6] == [0, 2, 4, 6, 8, 11]
    assert layers[26:28] == [10, 19]
    assert (net.has_bias, net.has_fc_out, net.mask_fc_out, net.has_linear_out) == (True, True, True, True)


def test_biases():
    for use_bias, use_fc_bias, expected in (
        (True, None, 14),
        (True, False, 13),
        (False, None, 0),
        (False, True, 1),
        (False, False, 0),
    ):
        net = WRN(**SMALL, use_bias=use_bias, use_fc_bias=use_fc_bias)
        assert [m["name"] for m in net.param_shapes_meta].count("bias") == expected
        assert net.has_bias == use_bias
        assert net(torch.rand(2, 144)).shape == (2, 3)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_against_plain_torch(training, after, dtype, device):
    options = {"use_context_mod": True, "context_mod_inputs": True, "context_mod_post_activation": after}
    net = WRN(**SMALL, **options).to(device, dtype).train(training)
    for layer in net.batchnorm_layers:
        layer.get_stats()[0].normal_()
    weights = [w.to(device) for w in draw(net, dtype)]
    num_mods = 2 * 15
    mods, norms, skips, layers = (
        weights[:num_mods],
        weights[num_mods : num_mods + 26],
        weights[num_mods + 26 : num_mods + 28],
        weights[num_mods + 28 :],
    )
    x = torch.rand(4, 9 * 8 * 2, dtype=dtype, device=device)

    def modulate(i, h):
        return h * mods[2 * i] + mods[2 * i + 1]

    def activate(i, h):
        h = h if after else modulate(i + 1, h)
        stats = [s.clone() for s in net.batchnorm_layers[i].get_stats()]
        h = F.batch_norm(h, *stats, norms[2 * i], norms[2 * i + 1], training=training).clamp_min(0)
        return modulate(i + 1, h) if after else h

    def convolve(i, h, stride=1):
        return F.conv2d(h, layers[2 * i], layers[2 * i + 1], stride, 1)

    h = convolve(0, modulate(0, x.view(4, 9, 8, 2).permute(0, 3, 1, 2)))
    for block in range(6):
        i, stride = 2 * block, 2 if block in (2, 4) else 1
        skip = F.conv2d(h, skips[block // 2 - 1], stride=2) if stride == 2 else h
        h = skip + convolve(i + 2, activate(i + 1, convolve(i + 1, activate(i, h), stride)))
    expected = modulate(14, F.linear(activate(12, h).mean((2, 3)), *layers[26:]))
    torch.testing.assert_close(net(x, weights=weights), expected, rtol=1e-3, atol=1e-3)


def test_channels_first():
    net = WRN(**SMALL, chw_input_format=True).eval()
    other = WRN(**SMALL).eval()
    other.overwrite_internal_params(list(net.internal_params))
    x = torch.rand(3, 2, 9, 8)
    last = x.permute(0, 2, 3, 1)
    outputs = [net(x), net(x.flatten(1)), other(last), other(last.flatten(1))]
    # To rounding: which kernel convolves depends on the layout in memory, and on the processor.
    for out in outputs[1:]:
        torch.testing.assert_close(out, outputs[0])
    with pytest.raises(ArgumentError, match=r"x: has shape \[3, 9, 8, 2\]; this network takes .* \[B, 2, 9, 8\]"):
        net(last)


def test_dropout_follows_the_mode():
    net, x = WRN(**{**SMALL, "k": 5}, dropout_rate=0.5), torch.rand(4, 144)
    assert not torch.equal(net(x), net(x))
    net.eval()
    plain = WRN(**{**SMALL, "k": 5}).eval()
    plain.load_state_dict(net.state_dict())
    torch.testing.assert_close(net(x), plain(x), rtol=0, atol=0)


def test_everything_dropped_leaves_the_skip_connections():
    options = {**SMALL, "use_batch_norm": False, "use_bias": False}
    net, x = WRN(**options, dropout_rate=1.0), torch.rand(4, 144)
    skips, (first, *_, out) = list(net.internal_params[:2]), list(net.internal_params[2:])
    h = F.conv2d(x.view(4, 9, 8, 2).permute(0, 3, 1, 2), first, padding=1)
    for skip in skips:
        h = F.conv2d(h, skip, stride=2)
    torch.testing.assert_close(net(x), F.linear(h.relu().mean((2, 3)), out))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("mod", [False, True])
def test_vectorised_over_weights(norm, mod):
    net = WRN(**SMALL, use_batch_norm=norm, use_context_mod=mod, context_mod_no_weights=True, no_weights=True)
    net.eval().double()
    weights, x = torch.randn(4, net.num_params, dtype=torch.float64), torch.rand(3, 144, dtype=torch.float64)
    loop = [net(x, weights=net.flatten_params(w, net.param_shapes, unflatten=True)) for w in weights]
    torch.testing.assert_close(batched_forward(net, weights, x), torch.stack(loop))


def test_dropout_masks_differ_between_weight_samples():
    net = WRN(**SMALL, use_batch_norm=False, dropout_rate=0.5, no_weights=True)
    out = batched_forward(net, torch.randn(net.num_params).expand(3, -1), torch.rand(5, 144))
    assert not torch.equal(out[0], out[1])


def test_widths_may_decrease():
    assert WRN(**{**SMALL, "num_feature_maps": (6, 4, 4, 2)})(torch.rand(2, 144)).shape == (2, 3)


def test_statistics_by_condition_and_distilled():
    net, x = WRN(**SMALL, distill_bn_stats=True), torch.rand(5, 144)
    net(x)
    first = [s.clone() for s in net.distillation_targets()]
    for layer in net.batchnorm_layers:
        layer.checkpoint_stats()
    net(-x)
    net.eval()
    torch.testing.assert_close(net(x, distilled_params=first), net(x, condition=0))
    assert not torch.allclose(net(x, condition=0), net(x))


def test_state_and_copies():
    net, x = WRN(**SMALL, use_context_mod=True, dropout_rate=0.1), torch.rand(3, 144)
    net(x)
    assert [tuple(p.shape) for p in net.parameters()] == [tuple(shape) for shape in net.param_shapes]
    fresh = WRN(**SMALL, use_context_mod=True, dropout_rate=0.1)
    fresh.load_state_dict(net.state_dict())
    net.eval()
    for other in (fresh, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(other.eval()(x), net(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dropout_rate": 1.5}, r"dropout_rate: is 1.5; pass a number in \[0, 1\], or -1 for none"),
        ({"distill_bn_stats": True, "bn_track_stats": False}, "distill_bn_stats: needs running statistics"),
        ({"n": 0}, "n: is 0; pass a number of at least 1"),
        ({"num_feature_maps": (1, 1, 1, 0)}, "num_feature_maps: is"),
    ],
)
def test_constructor_errors(options, match):
    with pytest.raises(ArgumentError, match=match):
        WRN(**{**SMALL, **options})
    with pytest.raises(ArgumentTypeError, match="init_weights: no such argument"):
        WRN(**SMALL, init_weights=[])
