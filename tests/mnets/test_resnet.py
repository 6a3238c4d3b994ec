# pyright: reportOptionalSubscript=false, reportOptionalIterable=false, reportGeneralTypeIssues=false

from __future__ import annotations

import copy
import itertools
import logging
import pickle

import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.hnets import HMLP
from bayeshnet.mnets import ResNet, batched_forward
from bayeshnet.mnets.layer_reader import ModOptions
from bayeshnet.models import BayesianModel, likelihoods

SMALL = {"in_shape": (9, 8, 2), "num_classes": 3, "num_feature_maps": (2, 3, 4, 7), "n": 1}


def names_and_layers(net):
    return [(m["name"], m["layer"]) for m in net.param_shapes_meta]


def draw(net, dtype=torch.float32):
    return [torch.randn(shape, dtype=dtype) for shape in net.param_shapes]


def test_known_sizes():
    # He et al. 2016, table 6: 0.27, 0.46, 0.66 and 0.85 million without biases of the convolutions.
    millions = [round(ResNet(n=n, use_bias=False, no_weights=True).num_params / 1e6, 2) for n in (3, 5, 7, 9)]
    assert millions == [0.27, 0.46, 0.66, 0.85]
    net = ResNet()
    assert net.num_params == net.num_internal_params == sum(p.numel() for p in net.parameters()) == 465_290
    assert net(torch.rand(2, 32 * 32 * 3)).shape == (2, 10)
    assert sum(m["name"] == "weight" for m in net.param_shapes_meta) == 6 * 5 + 2


def test_table():
    net = ResNet(**SMALL, k=2)
    widths = [2, 6, 6, 8, 8, 14, 14]
    assert net.param_shapes[:14] == [[width] for width in widths for _ in range(2)]
    kernels = [[[after, before, 3, 3], [after]] for before, after in zip([2, *widths], widths, strict=False)]
    assert net.param_shapes[14:] == [*itertools.chain(*kernels), [3, 14], [3]]
    assert names_and_layers(net) == [
        *[(name, 2 * i + 1) for i in range(7) for name in ("bn_scale", "bn_shift")],
        *[(name, 2 * i) for i in range(8) for name in ("weight", "bias")],
    ]
    assert (net.has_bias, net.has_fc_out, net.mask_fc_out, net.has_linear_out) == (True, True, True, True)
    assert len(net.batchnorm_layers) == 7
    assert net.context_mod_layers is None
    bare = ResNet(**SMALL, use_bias=False, use_batch_norm=False)
    assert names_and_layers(bare) == [("weight", i) for i in range(8)]
    assert (bare.has_bias, bare.batchnorm_layers) == (False, None)
    assert len(set(net.param_names)) == len(net.param_names)


def test_table_with_context_modulation():
    net = ResNet(**SMALL, use_context_mod=True, context_mod_inputs=True)
    assert net.param_shapes[0:18:2] == [[c, 1, 1] for c in (2, 2, 3, 3, 4, 4, 7, 7)] + [[3]]
    assert names_and_layers(net)[:4] == [("cm_scale", 0), ("cm_shift", 0), ("cm_scale", 2), ("cm_shift", 2)]
    assert names_and_layers(net)[18:20] == [("bn_scale", 3), ("bn_shift", 3)]
    pixels = ResNet(**SMALL, use_context_mod=True, context_mod_apply_pixel_wise=True, no_last_layer_context_mod=True)
    sizes = [(9, 8), (9, 8), (9, 8), (5, 4), (5, 4), (3, 2), (3, 2)]
    assert pixels.param_shapes[0:14:2] == [[c, *s] for c, s in zip((2, 3, 3, 4, 4, 7, 7), sizes, strict=True)]
    assert pixels.param_shapes[14] == [2]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_against_plain_torch(training, after, dtype, device):
    net = ResNet(**SMALL, use_context_mod=True, context_mod_post_activation=after).to(device, dtype).train(training)
    for layer in net.batchnorm_layers:
        layer.get_stats()[0].normal_()
    weights = [w.to(device) for w in draw(net, dtype)]
    mods, norms, layers = weights[:16], weights[16:30], weights[30:]
    x = torch.rand(4, 9 * 8 * 2, dtype=dtype, device=device)

    def convolve(i, h, stride=1):
        h = F.conv2d(h, layers[2 * i], layers[2 * i + 1], stride, 1)
        h = h if after else h * mods[2 * i] + mods[2 * i + 1]
        stats = [s.clone() for s in net.batchnorm_layers[i].get_stats()]
        return F.batch_norm(h, *stats, norms[2 * i], norms[2 * i + 1], training=training)

    def activate(i, h):
        h = h.clamp_min(0)
        return h * mods[2 * i] + mods[2 * i + 1] if after else h

    h = x.view(4, 9, 8, 2).permute(0, 3, 1, 2)
    h = activate(0, convolve(0, h))
    for i, stride, padding in ((1, 1, (0, 1)), (3, 2, (0, 1)), (5, 2, (1, 2))):
        skip = h[:, :, ::stride, ::stride]
        zeros = [torch.zeros_like(skip[:, :1]).repeat(1, num, 1, 1) for num in padding]
        skip = torch.cat([zeros[0], skip, zeros[1]], 1)
        h = activate(i + 1, convolve(i + 1, activate(i, convolve(i, h, stride))) + skip)
    expected = F.linear(h.mean((2, 3)), *layers[14:]) * mods[14] + mods[15]
    torch.testing.assert_close(net(x, weights=weights), expected, rtol=1e-4, atol=1e-4)


def test_stride_without_more_channels():
    # The reference fails here: it halves the skip connection only where channels are added.
    net = ResNet(**{**SMALL, "num_feature_maps": (4, 4, 4, 4)})
    assert net(torch.rand(2, 144)).shape == (2, 3)


def test_images_or_rows():
    net = ResNet(**SMALL).eval()
    x = torch.rand(3, 9, 8, 2)
    torch.testing.assert_close(net(x), net(x.flatten(1)), rtol=0, atol=0)


def test_initial_values_are_those_of_convolutions():
    torch.manual_seed(0)
    net = ResNet(**SMALL)
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 2, 3)
    torch.testing.assert_close(net.internal_params[14], conv.weight)
    torch.testing.assert_close(net.internal_params[15], conv.bias)
    assert all(p.eq(1).all() for p in net.internal_params[0:14:2])
    assert all(p.eq(0).all() for p in net.internal_params[1:14:2])
    net.custom_init()
    bound = (6 / (2 * 9 + 2 * 9)) ** 0.5  # Xavier
    assert 0.8 * bound < net.internal_params[14].abs().max() <= bound
    assert all(bias.eq(0).all() for bias in net.layer_bias_vectors)


def test_ways_to_pass_weights():
    options = {**SMALL, "use_context_mod": True}
    own, x = ResNet(**options).eval(), torch.rand(4, 144)
    weights = draw(own)
    copied = ResNet(**options, init_weights=weights).eval()
    expected = copied(x)
    mods, rest = weights[:16], weights[16:]
    for net, given in itertools.product(
        (own, ResNet(**options, no_weights=True, context_mod_no_weights=True).eval()),
        (weights, {"internal_weights": rest, "mod_weights": mods}),
    ):
        torch.testing.assert_close(net(x, weights=given), expected, rtol=0, atol=0)
    torch.testing.assert_close(copied(x, weights=mods), expected, rtol=0, atol=0)
    torch.testing.assert_close(copied(x, weights={"internal_weights": rest}), expected, rtol=0, atol=0)
    empty = ResNet(**options, no_weights=True)
    assert empty.hyper_shapes_learned == empty.param_shapes[16:]
    assert empty.num_internal_params == sum(mod.numel() for mod in mods)
    per_sample = [torch.stack([mod, mod, mod, -mod]) for mod in mods]
    torch.testing.assert_close(own(x, weights=per_sample + rest)[:3], expected[:3])
    assert not torch.allclose(own(x, weights=per_sample + rest)[3], expected[3])


def test_checkpoints_of_context_modulation():
    net, x = ResNet(**SMALL, use_context_mod=True).eval(), torch.rand(4, 144)
    kept = draw(net)[:16]
    with torch.no_grad():
        for param, value in zip(net.internal_params, kept, strict=False):
            param.copy_(value)
    before = net(x)
    for layer in net.context_mod_layers:
        layer.checkpoint_weights()
    assert not torch.allclose(net(x), before)
    torch.testing.assert_close(net(x, condition={"cmod_ckpt_id": 0}), before, rtol=0, atol=0)


def test_statistics_by_condition_and_distilled():
    net, x = ResNet(**SMALL, distill_bn_stats=True), torch.rand(5, 144)
    net(x)
    first = [s.clone() for s in net.distillation_targets()]
    assert [list(s.shape) for s in first] == net.hyper_shapes_distilled
    for layer in net.batchnorm_layers:
        layer.checkpoint_stats()
    net(-x)
    net.eval()
    torch.testing.assert_close(net(x, distilled_params=first), net(x, condition=0))
    assert not torch.allclose(net(x, condition=0), net(x, condition=1))
    untracked = ResNet(**SMALL, bn_track_stats=False).eval()
    assert not torch.allclose(untracked(x)[:2], untracked(x[:2]))  # statistics of the batch


@pytest.mark.parametrize("mod", [{}, {"use_context_mod": True}, {"use_context_mod": True, "context_mod_inputs": True}])
@pytest.mark.parametrize("norm", [False, True])
def test_vectorised_over_weights(mod, norm):
    net = ResNet(**SMALL, **mod, use_batch_norm=norm, no_weights=True, context_mod_no_weights=True).eval().double()
    weights, x = torch.randn(5, net.num_params, dtype=torch.float64), torch.rand(3, 144, dtype=torch.float64)
    loop = [net(x, weights=net.flatten_params(w, net.param_shapes, unflatten=True)) for w in weights]
    for chunk_size in (None, 2):
        torch.testing.assert_close(batched_forward(net, weights, x, chunk_size=chunk_size), torch.stack(loop))


def test_is_vectorised_and_not_looped():
    net, calls = ResNet(**SMALL, no_weights=True).eval(), []
    net.register_forward_hook(lambda *_: calls.append(1))
    batched_forward(net, torch.randn(5, net.num_params), torch.rand(3, 144))
    assert len(calls) == 1


def test_in_a_bayesian_model():
    net = ResNet(**SMALL).eval()
    model = BayesianModel(net, likelihood=likelihoods.Categorical())
    x, y = torch.rand(6, 144), torch.randint(3, (6,))
    assert model.latent_shapes == dict(zip(net.param_names, map(torch.Size, net.param_shapes), strict=True))
    elbo = pyro.infer.Trace_ELBO(num_particles=3, vectorize_particles=True)
    loss = elbo.differentiable_loss(model, AutoNormal(model), x, y)
    assert loss.isfinite()


def test_learns_digits_through_a_hypernetwork():
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images[:200] / 16, dtype=torch.float32), torch.tensor(labels[:200])
    net = ResNet((8, 8, 1), num_feature_maps=(4, 4, 8, 8), n=1, no_weights=True, use_batch_norm=False)
    hnet = HMLP(net.hyper_shapes_learned, layers=(20,))
    optimizer = torch.optim.Adam(hnet.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = F.cross_entropy(net(x, weights=hnet(cond_id=0)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 2.2  # about log(10): nothing is known
    assert losses[-1] < 1.5


def test_state_and_copies():
    net, x = ResNet(**SMALL, use_context_mod=True), torch.rand(3, 144)
    net(x)
    assert [tuple(p.shape) for p in net.parameters()] == [tuple(shape) for shape in net.param_shapes]
    assert len(net.state_dict()) == len(net.param_shapes) + 2 * 7
    fresh = ResNet(**SMALL, use_context_mod=True)
    fresh.load_state_dict(net.state_dict())
    net.eval()
    for other in (fresh, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(other.eval()(x), net(x), rtol=0, atol=0)


def test_masks():
    masks = ResNet(**SMALL).get_output_weight_mask(out_inds=[1])
    assert all(mask is None for mask in masks[:-2])
    assert masks[-2].sum(1).tolist() == [0, 7, 0]
    assert masks[-1].tolist() == [False, True, False]


def test_logs_and_does_not_print(caplog, capsys):
    with caplog.at_level(logging.INFO, logger="bayeshnet"):
        ResNet(no_weights=True)
        ResNet(no_weights=True, verbose=False)
    assert [r.getMessage() for r in caplog.records] == ["ResNet with 465290 weights, 0 of them its own."]
    assert capsys.readouterr().out == ""


def test_mod_options():
    assert not any(ModOptions(context_mod_inputs=True).sits(place) for place in ("input", "before", "after", "output"))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"in_shape": (8, 8)}, r"in_shape: is \(8, 8\); pass \(height, width, channels\)"),
        ({"in_shape": (8, 8, 0)}, "in_shape: is"),
        ({"num_classes": 0}, "num_classes: is 0; pass a number of at least 1"),
        ({"n": 0}, "n: is 0"),
        ({"k": 0}, "k: is 0"),
        ({"num_feature_maps": (4, 4, 8)}, r"num_feature_maps: is \(4, 4, 8\); pass four sizes"),
        ({"num_feature_maps": (4, 4, 8, 7)}, r"num_feature_maps: leads to the widths \(4, 4, 8, 7\), which decrease"),
        ({"distill_bn_stats": True, "bn_track_stats": False}, "distill_bn_stats: needs running statistics"),
        ({"init_weights": [torch.ones(1)]}, r"init_weights: have shapes \[\[1\]\]"),
    ],
)
def test_constructor_errors(options, match):
    with pytest.raises(ArgumentError, match=match):
        ResNet(**{**SMALL, **options})


def test_type_errors():
    with pytest.raises(ArgumentTypeError, match="k: is a float; pass an int"):
        ResNet(**SMALL, k=0.5)
    with pytest.raises(ArgumentTypeError, match="use_contxt_mod: no such argument; further keywords are .*inputs"):
        ResNet(**SMALL, use_contxt_mod=True)
    with pytest.raises(ArgumentTypeError, match=r"x: is a list; pass a tensor \[B, 144\]"):
        ResNet(**SMALL)([1.0])


def test_one_image():
    """Before it was refused; as in the reference the batch is then 1."""
    net = ResNet(**SMALL).eval()
    x = torch.rand(9, 8, 2)
    for one in (x, x.flatten()):
        torch.testing.assert_close(net(one), net(x.unsqueeze(0)))


def test_input_errors():
    net = ResNet(**SMALL)
    with pytest.raises(
        ArgumentError, match=r"x: has shape \[2, 143\]; this network takes \[B, 144\] or \[B, 9, 8, 2\]"
    ):
        net(torch.rand(2, 143))
    with pytest.raises(ArgumentError, match=r"Channels come last: pass x.permute\(0, 2, 3, 1\)"):
        net(torch.rand(1, 2, 9, 8))
    with pytest.raises(ArgumentError, match="weights: the network was built without weights of its own"):
        ResNet(**SMALL, no_weights=True)(torch.rand(1, 144))
