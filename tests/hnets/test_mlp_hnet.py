"""The fully-connected hypernetwork: its table, its options, its equation."""

# pyright: reportOptionalSubscript=false, reportOptionalIterable=false, reportGeneralTypeIssues=false

from __future__ import annotations

import logging
import math
import warnings

import pytest
import torch
from torch import nn

from bayeshnet.errors import ArgumentError, BayeshnetWarning, UsageError
from bayeshnet.hnets import HMLP


def table(hnet):
    return [(r.name, list(r.shape), r.layer, r.conditional, r.internal) for r in hnet.param_table]


def test_record_order():
    hnet = HMLP(
        [[3, 2], [], [3]],
        uncond_in_size=2,
        cond_in_size=4,
        layers=(5, 6),
        num_cond_embs=2,
        no_uncond_weights=True,
        use_batch_norm=True,
        linear_skip=True,
    )
    assert table(hnet) == [
        ("embedding", [4], 0, True, True),
        ("embedding", [4], 0, True, True),
        ("bn_scale", [5], 2, False, False),
        ("bn_shift", [5], 2, False, False),
        ("bn_scale", [6], 4, False, False),
        ("bn_shift", [6], 4, False, False),
        ("weight", [5, 6], 1, False, False),
        ("bias", [5], 1, False, False),
        ("weight", [6, 5], 3, False, False),
        ("bias", [6], 3, False, False),
        ("weight", [10, 6], 5, False, False),
        ("bias", [10], 5, False, False),
        ("weight", [10, 6], 5, False, False),
    ]
    assert [meta["index"] for meta in hnet.param_shapes_meta] == [0, 1] + [-1] * 11


def test_output_flags_and_sizes():
    hnet = HMLP([[3]], 2, 4)
    assert (hnet.has_bias, hnet.has_fc_out, hnet.mask_fc_out, hnet.has_linear_out) == (True, True, True, True)
    assert not HMLP([[3]], use_bias=False).has_bias
    assert (hnet.uncond_in_size, hnet.cond_in_size) == (2, 4)
    assert hnet.distillation_targets() is None
    assert hnet.hyper_shapes_distilled is None
    assert hnet.batchnorm_layers is None
    assert hnet.context_mod_layers is None
    assert len(HMLP([[3]], layers=(4, 5), use_batch_norm=True).batchnorm_layers) == 2


def test_the_equation():
    hnet = HMLP([[3]], 2, 4, (5, 6), activation_fn=torch.tanh, linear_skip=True)
    emb, w1, b1, w2, b2, w3, b3, skip = hnet.internal_params
    z = torch.randn(7, 2)
    x = torch.cat([z, emb.expand(7, -1)], dim=1)
    hidden = torch.tanh(torch.tanh(x @ w1.T + b1) @ w2.T + b2)
    torch.testing.assert_close(hnet(z, cond_id=0, ret_format="flattened"), hidden @ w3.T + b3 + x @ skip.T)


def test_hidden_layers_normalise_then_drop_then_activate():
    hnet = HMLP([[3]], 2, 0, (50,), activation_fn=torch.exp, use_batch_norm=True, dropout_rate=0.5)
    with torch.no_grad():
        hnet.internal_params[1].fill_(2.0)  # the shift: what dropout leaves is 0 or about 2 (2 + x)
    seen = []
    hnet.activation_fn = lambda x: seen.append(x) or x
    z = torch.randn(64, 2)
    hnet(z)
    kept = seen[0] != 0
    assert 0.3 < kept.float().mean() < 0.7
    assert abs(seen[0][kept].mean() - 4) < 0.2  # dropout doubles what it keeps


def test_a_linear_hypernetwork_without_layers():
    hnet = HMLP([[3, 2]], 4, 0, layers=())
    weight, bias = hnet.internal_params
    z = torch.randn(5, 4)
    torch.testing.assert_close(hnet(z, ret_format="flattened"), z @ weight.T + bias)


def test_without_bias():
    hnet = HMLP([[3, 2]], 4, 0, layers=(5,), use_bias=False)
    assert hnet.param_shapes == [[5, 4], [6, 5]]
    assert hnet.layer_bias_vectors == []
    assert not hnet(torch.zeros(1, 4))[0].any()


def test_no_activation_is_the_identity():
    hnet = HMLP([[3]], 2, 0, (4,), activation_fn=None, use_bias=False)
    w1, w2 = hnet.internal_params
    torch.testing.assert_close(hnet(torch.eye(2), ret_format="flattened"), (w2 @ w1).T)


def test_scalars_as_targets():
    hnet = HMLP([[], [2], []], 2, 0, ())
    out = hnet(torch.randn(1, 2))
    assert [t.shape for t in out] == [(), (2,), ()]
    assert hnet.num_outputs == 4


def test_default_init_is_that_of_pytorch():
    hnet = HMLP([[40, 25]], 30, 50, (200,), num_cond_embs=100)
    torch.manual_seed(3)
    linear = nn.Linear(200, 1000)
    weight, bias = hnet.internal_params[-2:]
    assert weight.abs().max() <= 1 / math.sqrt(200)
    assert bias.abs().max() <= 1 / math.sqrt(200)
    assert abs(weight.std() / linear.weight.std() - 1) < 0.02
    assert abs(bias.std() / linear.bias.std() - 1) < 0.1
    embeddings = torch.stack(hnet.conditional_params)
    assert abs(embeddings.mean()) < 0.06
    assert abs(embeddings.std() - 1) < 0.05
    hnet = HMLP([[3]], layers=(4,), use_batch_norm=True)
    assert (hnet.internal_params[1] == 1).all()
    assert (hnet.internal_params[2] == 0).all()


# ---------------------------------------------------------------------- conditions


def test_rules_of_num_cond_embs():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        silent = HMLP([[3]], 2, 0)
        assert (silent.num_known_conds, silent.conditional_params, silent.conditional_param_shapes) == (0, None, [])
        by_input = HMLP([[3]], 0, 4, num_cond_embs=0)
        assert by_input.num_known_conds == 0
        assert by_input(cond_input=torch.ones(1, 4))[0].shape == (3,)
    with pytest.warns(BayeshnetWarning, match="num_cond_embs: is 3, but cond_in_size is 0, so no embeddings are kept"):
        assert HMLP([[3]], 2, 0, num_cond_embs=3).num_known_conds == 0


def test_get_cond_in_emb():
    hnet = HMLP([[3]], num_cond_embs=2)
    assert hnet.get_cond_in_emb(1) is hnet.conditional_params[1]
    for wrong in (2, -1):
        with pytest.raises(ArgumentError, match=f"cond_id: {wrong} does not exist"):
            hnet.get_cond_in_emb(wrong)
    with pytest.raises(ArgumentError, match="cond_id: has 2 conditions; pass one"):
        hnet.get_cond_in_emb([0, 1])
    with pytest.raises(UsageError, match="no_cond_weights=True the embeddings are kept by the caller"):
        HMLP([[3]], no_cond_weights=True).get_cond_in_emb(0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"target_shapes": []}, "target_shapes: is empty"),
        ({"target_shapes": [3]}, r"target_shapes: .* list of shapes"),
        ({"target_shapes": [[3, -1]]}, "target_shapes: .* negative"),
        ({"uncond_in_size": -1}, "uncond_in_size: is -1; pass 0 or more"),
        ({"cond_in_size": -1}, "cond_in_size: is -1; pass 0 or more"),
        ({"num_cond_embs": -1}, "num_cond_embs: is -1; pass 0 or more"),
        ({"cond_in_size": 0}, "uncond_in_size: and cond_in_size are both 0"),
        ({"layers": (4, 0)}, r"layers: is \[4, 0\], with a width below 1; pass"),
        ({"dropout_rate": 1.5}, "dropout_rate: is 1.5; pass a number in"),
        ({"dropout_rate": -0.5}, "dropout_rate: is -0.5; pass a number in"),
        ({"dropout_rate": None}, "dropout_rate: is None, a NoneType; pass a number"),
        ({"layers": 5}, "layers: is 5, an int; pass a list of widths such as"),
        ({"layers": (5, 2.5)}, "layers: is 2.5, a float; pass an int"),
        ({"activation_fn": "relu"}, "activation_fn: is .*; pass a function such as torch.relu"),
        ({"activation_fn": torch.nn.ReLU}, "activation_fn: is .*; pass a function such as torch.relu"),
    ],
)
def test_refused_configurations(kwargs, message):
    with pytest.raises((ArgumentError, TypeError), match=message):
        HMLP(**{"target_shapes": [[3]], **kwargs})


# ---------------------------------------------------------------------- batch norm, dropout, spectral norm


def test_batch_norm_and_its_statistics():
    hnet = HMLP([[3]], 2, 0, (4,), activation_fn=None, use_batch_norm=True)
    z = torch.randn(64, 2) + 3
    hnet(z)
    layer = hnet.batchnorm_layers[0]
    layer.checkpoint_stats()
    hnet(z, condition=1)
    hnet.eval()
    first, second = hnet(z, condition=0, ret_format="flattened"), hnet(z, condition=1, ret_format="flattened")
    torch.testing.assert_close(first, second)
    hnet.train()
    hnet(z + 50, condition=1)
    hnet.eval()
    assert torch.equal(hnet(z, condition=0, ret_format="flattened"), first)
    assert not torch.allclose(hnet(z, condition=1, ret_format="flattened"), second)
    assert sorted(k.split(".")[0] for k in hnet.state_dict()) == ["_batchnorm_layers"] * 4 + ["_internal_params"] * 6


def test_eval_reaches_dropout():
    hnet = HMLP([[30]], 2, 0, (100,), dropout_rate=0.5)
    z = torch.randn(1, 2)
    assert not torch.equal(hnet(z)[0], hnet(z)[0])
    hnet.eval()
    assert torch.equal(hnet(z)[0], hnet(z)[0])
    assert HMLP([[3]], dropout_rate=-1).dropout is None


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_spectral_norm_divides_every_matrix(external, training):
    hnet = HMLP([[30]], 2, 4, (50, 40), activation_fn=None, use_bias=False, use_spectral_norm=True, linear_skip=True)
    hnet.train(training)
    plain = HMLP([[30]], 2, 4, (50, 40), activation_fn=None, use_bias=False, linear_skip=True)
    matrices = [p / torch.linalg.matrix_norm(p, 2) for p in hnet.unconditional_params]
    weights = [t.clone().detach() for t in hnet.internal_params] if external else None
    out = hnet(torch.eye(2), cond_id=0, weights=weights, ret_format="flattened")
    expected = plain(torch.eye(2), cond_id=0, weights=[hnet.get_cond_in_emb(0), *matrices], ret_format="flattened")
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_spectral_norm_keeps_the_raw_tensors():
    hnet = HMLP([[3]], 2, 0, (4,), use_spectral_norm=True)
    raw = [p.detach().clone() for p in hnet.internal_params]
    hnet(torch.ones(1, 2))
    assert all(torch.equal(a, b) for a, b in zip(raw, hnet.internal_params, strict=True))
    buffers = {k: v.clone() for k, v in hnet.named_buffers()}
    hnet.eval()(torch.ones(1, 2))
    hnet.train()(torch.ones(1, 2), weights=raw)
    assert all(torch.equal(buffers[k], v) for k, v in hnet.named_buffers()), "only internal weights in training count"


# ---------------------------------------------------------------------- the rest of the interface


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_output_mask(use_bias, skip):
    hnet = HMLP([[2, 2]], 3, 0, (5,), use_bias=use_bias, linear_skip=skip)
    masks = hnet.get_output_weight_mask([1, 3])
    for record, mask in zip(hnet.param_table, masks, strict=True):
        if record.layer == 3:
            assert mask.shape == record.shape
            assert mask.reshape(4, -1).all(1).tolist() == [False, True, False, True]
            assert mask.reshape(4, -1).any(1).tolist() == [False, True, False, True]
        else:
            assert mask is None


def test_it_logs_and_does_not_print(caplog, capsys):
    with caplog.at_level(logging.INFO):
        HMLP([[3]], 2, 4, (), num_cond_embs=2)
        HMLP([[3]], verbose=False)
    assert [r.message for r in caplog.records] == [
        "Created HMLP: 3 outputs, 21 unconditional and 8 conditional weights."
    ]
    assert capsys.readouterr() == ("", "")


def test_custom_init():
    hnet = HMLP([[3]], 2, 0, (4,))
    hnet.custom_init(normal_init=True, normal_std=0.5)
    assert not hnet.internal_params[1].any()
    assert hnet.internal_params[0].any()


# ---------------------------------------------------------------------- transforms


@pytest.mark.parametrize("options", [{}, {"use_spectral_norm": True}, {"linear_skip": True}, {"use_bias": False}])
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, at the first forward-mode call
def test_function_transforms(options):
    hnet = HMLP([[3], [2]], 2, 4, (5,), num_cond_embs=2, **options).double().eval()
    z = torch.randn(6, 2, dtype=torch.float64)

    def flat(row):
        return hnet(row[None], cond_id=1, ret_format="flattened")[0]

    expected = torch.stack([flat(row) for row in z])
    torch.testing.assert_close(torch.func.vmap(flat)(z), expected)
    jacobian = torch.stack([torch.autograd.functional.jacobian(flat, row) for row in z])
    torch.testing.assert_close(torch.func.vmap(torch.func.jacfwd(flat))(z), jacobian)
    torch.testing.assert_close(torch.func.vmap(torch.func.jacrev(flat))(z), jacobian)
    tangent = torch.randn(2, dtype=torch.float64)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(z, tangent.expand(6, -1))
        out = torch.autograd.forward_ad.unpack_dual(hnet(dual, cond_id=1, ret_format="flattened")).tangent
    torch.testing.assert_close(out, jacobian @ tangent)
    stacked = {name: torch.stack([p.detach(), 2 * p.detach()]) for name, p in hnet.named_parameters()}
    kwargs = {"cond_id": 0, "ret_format": "stacked"}
    both = torch.func.vmap(lambda p: torch.func.functional_call(hnet, p, (z,), kwargs))(stacked)
    torch.testing.assert_close(both[0][0], hnet(z, **kwargs)[0])
    assert not torch.allclose(both[0][1], both[0][0])


def test_transforms_in_training_mode_leave_the_power_iteration_alone():
    hnet = HMLP([[3]], 2, 0, (5,), use_spectral_norm=True)
    jacobian = torch.func.jacrev(lambda z: hnet(z, ret_format="flattened").sum(0))(torch.randn(4, 2))
    assert jacobian.shape == (3, 4, 2)
    assert not any(buffer.any() for buffer in hnet.buffers())
