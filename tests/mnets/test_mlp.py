""""""

from __future__ import annotations

import copy
import logging
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from bayeshnet.mnets import MLP, batched_forward, functional_copy

EVERYTHING = {
    "n_in": 3,
    "n_out": 2,
    "hidden_layers": (5, 4),
    "use_batch_norm": True,
    "use_context_mod": True,
    "context_mod_inputs": True,
}


def names_and_layers(net):
    return [(m["name"], m["layer"]) for m in net.param_shapes_meta]


def test_plain(dtype, device):
    net = MLP(3, 2, (5, 4), activation_fn=nn.Tanh()).to(device, dtype)
    assert net.param_shapes == [[5, 3], [5], [4, 5], [4], [2, 4], [2]] == MLP.weight_shapes(3, 2, [5, 4])
    assert names_and_layers(net) == [(name, layer) for layer in range(3) for name in ("weight", "bias")]
    x = torch.randn(7, 3, dtype=dtype, device=device)
    w0, b0, w1, b1, w2, b2 = net.internal_params
    torch.testing.assert_close(net(x), F.linear(F.linear(F.linear(x, w0, b0).tanh(), w1, b1).tanh(), w2, b2))
    assert (net.has_bias, net.has_fc_out, net.mask_fc_out, net.has_linear_out) == (True, True, True, True)
    assert net.distillation_targets() is net.batchnorm_layers is net.context_mod_layers is None


def test_default_and_linear():
    assert MLP().param_shapes == [[10, 1], [10], [10, 10], [10], [1, 10], [1]]
    net = MLP(3, 2, (), use_bias=False)
    x = torch.randn(4, 3)
    torch.testing.assert_close(net(x), x @ net.internal_params[0].T)
    assert MLP(3, 2, (4,), activation_fn=None)(x).shape == (4, 2)


def test_initial_values_are_those_of_linear_layers():
    torch.manual_seed(0)
    net = MLP(3, 2, (4,))
    torch.manual_seed(0)
    layers = nn.Linear(3, 4), nn.Linear(4, 2)
    for ours, theirs in zip(net.internal_params, [p for layer in layers for p in layer.parameters()], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_record_order_with_everything():
    net = MLP(**EVERYTHING)
    assert names_and_layers(net) == [
        *[(name, layer) for layer in (0, 2, 5, 8) for name in ("cm_scale", "cm_shift")],
        *[(name, layer) for layer in (3, 6) for name in ("bn_scale", "bn_shift")],
        *[(name, layer) for layer in (1, 4, 7) for name in ("weight", "bias")],
    ]
    assert net.param_shapes[:8] == [[3], [3], [5], [5], [4], [4], [2], [2]]
    after = MLP(**EVERYTHING, context_mod_post_activation=True, no_last_layer_context_mod=True)
    assert names_and_layers(after)[:6] == [(n, layer) for layer in (0, 3, 6) for n in ("cm_scale", "cm_shift")]
    assert names_and_layers(after)[6:8] == [("bn_scale", 2), ("bn_shift", 2)]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_everything_against_plain_torch(after, training):
    net = MLP(**EVERYTHING, context_mod_post_activation=after, context_mod_gain_offset=True)
    net.train(training)
    for layer in net.batchnorm_layers:
        layer.get_stats()[0].normal_()
    x = torch.randn(9, 3)
    weights = [torch.randn(shape) for shape in net.param_shapes]
    mods, norms, linears = weights[:8], weights[8:12], weights[12:]

    def modulate(i, h):
        return h * (1 + mods[2 * i]) + mods[2 * i + 1]

    h = modulate(0, x)
    for i in range(2):
        h = F.linear(h, linears[2 * i], linears[2 * i + 1])
        h = h if after else modulate(i + 1, h)
        stats = [s.clone() for s in net.batchnorm_layers[i].get_stats()]
        h = F.relu(F.batch_norm(h, *stats, norms[2 * i], norms[2 * i + 1], training=training))
        h = modulate(i + 1, h) if after else h
    expected = modulate(3, F.linear(h, *linears[4:]))
    torch.testing.assert_close(net(x, weights=weights), expected)
    net.overwrite_internal_params(weights)
    if not training:
        torch.testing.assert_close(net(x), expected)


def test_out_fn_returns_both():
    net = MLP(3, 2, (4,), out_fn=torch.sigmoid)
    y, h = net(torch.randn(5, 3))
    torch.testing.assert_close(y, torch.sigmoid(h))
    assert not net.has_linear_out


def test_dropout_follows_the_mode():
    net, x = MLP(3, 1, (500,), dropout_rate=0.5), torch.randn(2, 3)
    assert not torch.equal(net(x), net(x))
    net.eval()
    torch.testing.assert_close(net(x), MLP(3, 1, (500,), init_weights=list(net.internal_params))(x))


def test_spectral_norm():
    net, x = MLP(3, 2, (5, 4), use_spectral_norm=True), torch.randn(6, 3)
    for mode in (True, False):
        net.train(mode)
        plain = [p / torch.linalg.matrix_norm(p, 2) if p.dim() == 2 else p for p in net.internal_params]
        torch.testing.assert_close(net(x), MLP(3, 2, (5, 4), init_weights=plain)(x))
    external = [torch.randn(shape) for shape in net.param_shapes]
    before = [b.clone() for b in net.buffers()]
    normed = [p / torch.linalg.matrix_norm(p, 2) if p.dim() == 2 else p for p in external]
    torch.testing.assert_close(net.train()(x, weights=external), MLP(3, 2, (5, 4), init_weights=normed)(x))
    torch.testing.assert_close(list(net.buffers()), before)
    net(x)
    assert not all(torch.equal(a, b) for a, b in zip(net.buffers(), before, strict=True))


def test_batch_norm_statistics_by_condition():
    net = MLP(3, 2, (5,), use_batch_norm=True)
    net(torch.randn(50, 3) + 9)
    for layer in net.batchnorm_layers:
        layer.checkpoint_stats()
    net(torch.randn(50, 3) - 9)  # the newest set, number 1
    (layer,) = net.batchnorm_layers
    assert not torch.allclose(layer.get_stats(0)[0], layer.get_stats(1)[0])
    net.eval()
    x = torch.randn(4, 3)
    assert not torch.allclose(net(x, condition=0), net(x, condition=1))
    torch.testing.assert_close(net(x), net(x, condition=1))
    torch.testing.assert_close(net(x, condition={"bn_stats_id": 0}), net(x, condition=0))
    fresh = MLP(3, 2, (5,), use_batch_norm=True).eval()
    fresh.load_state_dict(net.state_dict())
    torch.testing.assert_close(fresh(x, condition=0), net(x, condition=0))


def test_distilled_statistics():
    net = MLP(3, 2, (5, 4), use_batch_norm=True, distill_bn_stats=True)
    net(torch.randn(50, 3))
    targets = net.distillation_targets()
    assert net.hyper_shapes_distilled == [[5], [5], [4], [4]] == [list(t.shape) for t in targets]
    net.eval()
    x = torch.randn(4, 3)
    torch.testing.assert_close(net(x, distilled_params=targets), net(x))
    made = [t.clone().add(1).requires_grad_() for t in targets]
    net(x, distilled_params=made).sum().backward()
    assert all(t.grad is not None for t in made)
    assert MLP(3, 2, (5,), use_batch_norm=True, bn_track_stats=False).eval()(x).shape == (4, 2)
    assert MLP(3, 2, distill_bn_stats=True).hyper_shapes_distilled is None


def test_ways_to_pass_weights():
    options = {"n_in": 3, "n_out": 2, "hidden_layers": (4,), "use_context_mod": True}
    reference, x = MLP(**options), torch.randn(6, 3)
    weights = [torch.randn(shape) for shape in reference.param_shapes]
    mods, rest = weights[:4], weights[4:]
    expected = reference(x, weights=weights)
    bare = MLP(**options, no_weights=True, context_mod_no_weights=True)
    assert bare.internal_params is bare.internal_params_ref is None
    assert bare.hyper_shapes_learned == bare.param_shapes
    only_mods_external = MLP(**options, context_mod_no_weights=True, init_weights=rest)
    assert only_mods_external.hyper_shapes_learned == bare.param_shapes[:4]
    assert only_mods_external.hyper_shapes_learned_ref == [0, 1, 2, 3]
    only_mods_own = MLP(**options, no_weights=True, init_weights=mods)
    assert only_mods_own.hyper_shapes_learned_ref == [4, 5, 6, 7]
    assert [m["index"] for m in only_mods_own.param_shapes_meta] == [0, 1, 2, 3, -1, -1, -1, -1]
    both = MLP(**options, init_weights=weights)
    for net, passed in (
        (bare, weights),
        (bare, {"internal_weights": rest, "mod_weights": mods}),
        (only_mods_external, mods),
        (only_mods_external, weights),
        (only_mods_external, {"mod_weights": mods}),
        (only_mods_own, rest),  # as many as gains and shifts: what is external is meant
        (only_mods_own, {"internal_weights": rest}),
        (both, None),
        (both, mods),
        (both, {"mod_weights": mods}),
        (both, {"internal_weights": rest}),
        (both, nn.ParameterList([nn.Parameter(w) for w in weights])),
    ):
        torch.testing.assert_close(net(x, weights=passed), expected)


def test_gains_per_sample():
    net, x = MLP(3, 2, (), use_context_mod=True), torch.randn(6, 3)
    gain, shift = torch.randn(6, 2), torch.randn(6, 2)
    expected = F.linear(x, *list(net.internal_params)[2:]) * gain + shift
    torch.testing.assert_close(net(x, weights={"mod_weights": [gain, shift]}), expected)


def test_checkpoints_of_context_modulation():
    net, x = MLP(3, 2, (4,), use_context_mod=True), torch.randn(6, 3)
    for layer in net.context_mod_layers:
        layer.normal_init()
    before = net(x)
    for layer in net.context_mod_layers:
        layer.checkpoint_weights()
    assert not torch.allclose(net(x), before)
    torch.testing.assert_close(net(x, condition={"cmod_ckpt_id": 0}), before)
    fresh = MLP(3, 2, (4,), use_context_mod=True)
    fresh.load_state_dict(net.state_dict())
    torch.testing.assert_close(fresh(x, condition={"cmod_ckpt_id": 0}), before)


def test_modulation_of_nothing():
    net = MLP(3, 2, (), use_context_mod=True, no_last_layer_context_mod=True)
    assert net.param_shapes == [[2, 3], [2]]
    assert net.context_mod_layers is None


def test_one_key_per_tensor_in_table_order():
    net = MLP(**EVERYTHING, use_spectral_norm=True)
    params = list(net.parameters())
    assert all(a is b for a, b in zip(params, net.internal_params, strict=True))
    state = net.state_dict()
    assert len({t.data_ptr() for t in state.values()}) == len(state) == len(params) + 4 + 3
    assert [list(p.shape) for p in params] == net.param_shapes


def test_copies():
    net, x = (
        MLP(**EVERYTHING, dropout_rate=0.1, activation_fn=torch.tanh, out_fn=nn.Sigmoid()).eval(),
        torch.randn(4, 3),
    )
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(other(x), net(x))
        other.internal_params[0].data.add_(1)
        assert not torch.allclose(other(x)[0], net(x)[0])


def test_masks():
    masks = MLP(3, 2, (4,)).get_output_weight_mask(out_inds=[1])
    assert masks[:2] == [None, None]
    assert masks[2].tolist() == [[False] * 4, [True] * 4]
    assert masks[3].tolist() == [False, True]


def test_logs_and_does_not_print(caplog, capsys):
    with caplog.at_level(logging.INFO):
        MLP(3, 2, verbose=False)
        assert caplog.messages == []
        MLP(3, 2, (), no_weights=True)
    assert caplog.messages == ["MLP with 8 weights, 0 of them its own."]
    assert capsys.readouterr().out == ""


@given(
    bias=st.booleans(),
    norm=st.sampled_from([None, True, False]),
    mod=st.booleans(),
    spectral=st.booleans(),
    after=st.booleans(),
    dropout=st.sampled_from([-1, 0.0]),
    hidden=st.lists(st.integers(1, 4), max_size=2),
)
@settings(max_examples=40, deadline=None)
def test_vectorised_over_weights(bias, norm, mod, spectral, after, dropout, hidden):
    net = MLP(
        3,
        2,
        hidden,
        use_bias=bias,
        use_batch_norm=norm is not None,
        bn_track_stats=bool(norm),
        use_context_mod=mod,
        context_mod_inputs=after,
        context_mod_post_activation=after,
        use_spectral_norm=spectral,
        dropout_rate=dropout,
        verbose=False,
    ).eval()
    weights, x = torch.randn(4, net.num_params), torch.randn(5, 3)
    loop = [net(x, weights=net.flatten_params(w, net.param_shapes, unflatten=True)) for w in weights]
    torch.testing.assert_close(batched_forward(net, weights, x), torch.stack(loop), rtol=1e-4, atol=1e-4)
    copied = functional_copy(net)
    assert list(copied.parameters()) == []
    assert copied.internal_params is None
    torch.testing.assert_close(batched_forward(copied, weights, x), torch.stack(loop), rtol=1e-4, atol=1e-4)


def test_subclass_and_hooks_are_not_bypassed():
    class Twice(MLP):
        def forward(self, *args, **kwargs):
            return 2 * super().forward(*args, **kwargs)

    net, x = Twice(3, 2, (4,)), torch.randn(5, 3)
    weights = torch.randn(4, net.num_params)
    ours = batched_forward(net, weights, x)
    plain = MLP(3, 2, (4,))
    torch.testing.assert_close(ours, 2 * batched_forward(plain, weights, x))
    plain.register_forward_hook(lambda module, args, out: 2 * out)
    torch.testing.assert_close(ours, batched_forward(plain, weights, x))
