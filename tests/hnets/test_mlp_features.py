"""Features, head and Jacobian: equal to what forward computes, for any shape of input."""

# pyright: reportOptionalSubscript=false, reportOptionalIterable=false, reportGeneralTypeIssues=false

from __future__ import annotations

import pytest
import torch
from torch import nn

from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.hnets import HMLP, HPerturbWrapper, LinearHeadHyperNet

ACTIVATIONS = [torch.tanh, nn.Sigmoid(), nn.ReLU(), None, nn.ELU(), nn.Softmax(-1)]


@pytest.fixture(params=[{}, {"linear_skip": True}, {"use_bias": False}, {"use_spectral_norm": True}, {"layers": ()}])
def hnet(request):
    options = {"layers": (5, 4), "activation_fn": torch.tanh, **request.param}
    return HMLP([[3, 2], [3]], 2, 4, num_cond_embs=3, **options).double().eval()


def combine(hnet, features, weights=None):
    weight, bias = hnet.head(weights)
    out = features @ weight.T
    return out if bias is None else out + bias


def test_features_and_head_make_the_output(hnet):
    z = torch.randn(6, 2, dtype=torch.float64)
    out = hnet(z, cond_id=1, ret_format="flattened")
    torch.testing.assert_close(combine(hnet, hnet.features(z, cond_id=1)), out)
    torch.testing.assert_close(combine(hnet, hnet.features(z[0], cond_id=1)), out[0])
    torch.testing.assert_close(combine(hnet, hnet.features(z.view(2, 3, 2), cond_id=1)), out.view(2, 3, 9))
    emb = hnet.get_cond_in_emb(1)
    torch.testing.assert_close(
        hnet.features(z.view(2, 3, 2), cond_input=emb), hnet.features(z, cond_id=1).view(2, 3, -1)
    )
    per_row = hnet(z[:3], cond_id=[0, 2, 1], ret_format="flattened")
    torch.testing.assert_close(combine(hnet, hnet.features(z[:3], cond_id=[0, 2, 1])), per_row)
    assert combine(hnet, hnet.features(z[:1], cond_id=[0, 2, 1])).shape == per_row.shape
    crossed = hnet.features(z.view(6, 1, 2), cond_id=[0, 2, 1])
    torch.testing.assert_close(combine(hnet, crossed)[0, 0], hnet(z[:1], cond_id=0, ret_format="flattened")[0])
    assert crossed.shape[:2] == (6, 3)


def test_external_weights(hnet):
    weights = [torch.randn_like(p) for p in hnet.internal_params]
    z = torch.randn(6, 2, dtype=torch.float64)
    out = hnet(z, cond_id=1, weights=weights, ret_format="flattened")
    torch.testing.assert_close(combine(hnet, hnet.features(z, cond_id=1, weights=weights), weights), out)


def test_conditional_networks_without_noise():
    hnet = HMLP([[3]], 0, 4, (5,), num_cond_embs=3)
    torch.testing.assert_close(combine(hnet, hnet.features(cond_id=1)), hnet(cond_id=1, ret_format="flattened"))
    both = hnet.features(cond_id=[1, 2])
    torch.testing.assert_close(combine(hnet, both), hnet(cond_id=[1, 2], ret_format="flattened"))
    assert hnet.features(cond_input=torch.ones(2, 3, 4)).shape == (2, 3, 5)


def test_first_rows_of_the_head(hnet):
    weight, bias = hnet.head()
    for rows in (0, 4, 9):
        first, first_bias = hnet.head(rows=rows)
        torch.testing.assert_close(first, weight[:rows])
        if bias is None:
            assert first_bias is None
        else:
            torch.testing.assert_close(first_bias, bias[:rows])
    for wrong in (-1, 10):
        with pytest.raises(ArgumentError, match=rf"rows: is {wrong}; pass a number in 0\.\.9"):
            hnet.head(rows=wrong)


def test_the_head_is_differentiable():
    hnet = HMLP([[3]], 2, 0, (4,), linear_skip=True)
    weight, bias = hnet.head(rows=2)
    (weight.sum() + bias.sum()).backward()
    *_, head, offset, skip = hnet.internal_params
    assert head.grad[:2].all()
    assert not head.grad[2:].any()
    assert skip.grad[:2].all()
    assert offset.grad.tolist() == [1, 1, 0]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=["tanh", "sigmoid", "relu", "none", "elu", "softmax"])
@pytest.mark.parametrize("cond_in_size", [0, 3])
@pytest.mark.parametrize("layers", [(), (5,), (5, 4)])
@pytest.mark.parametrize("options", [{}, {"linear_skip": True}, {"use_spectral_norm": True}])
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_feature_jacobian(activation, cond_in_size, layers, options):
    hnet = HMLP(
        [[3]], 2, cond_in_size, layers, activation_fn=activation, num_cond_embs=3 if cond_in_size else 1, **options
    )
    hnet.double().eval()
    kwargs = {"cond_id": [0, 2, 1]} if cond_in_size else {}
    z = torch.randn(3, 2, dtype=torch.float64)
    jacobian = hnet.feature_jacobian(z, **kwargs)
    expected = torch.autograd.functional.jacobian(lambda z: hnet.features(z, **kwargs).sum(0), z)
    torch.testing.assert_close(jacobian, expected.permute(1, 2, 0))
    if not cond_in_size:
        torch.testing.assert_close(hnet.feature_jacobian(z[:1]), jacobian[:1])


def test_feature_jacobian_with_external_weights_and_inputs():
    hnet = HMLP([[3]], 2, 3, (5,), activation_fn=torch.tanh, num_cond_embs=0)
    weights = [torch.randn_like(p, requires_grad=True) for p in hnet.internal_params]
    z, cond = torch.randn(4, 2), torch.randn(4, 3)
    jacobian = hnet.feature_jacobian(z, cond, weights=weights)
    expected = torch.autograd.functional.jacobian(lambda z: hnet.features(z, cond, weights=weights).sum(0), z)
    torch.testing.assert_close(jacobian, expected.permute(1, 2, 0))
    jacobian.sum().backward()
    assert weights[0].grad.any()
    shared = hnet.feature_jacobian(z, cond[:1], weights=weights)
    torch.testing.assert_close(shared[0], jacobian[0])


@pytest.mark.parametrize("options", [{"use_batch_norm": True}, {"dropout_rate": 0.5}])
def test_no_features_with_batch_norm_or_dropout(options):
    hnet = HMLP([[3]], 2, 0, **options)
    assert not hnet.has_linear_head
    z = torch.ones(2, 2)
    for method in (hnet.features, hnet.feature_jacobian):
        with pytest.raises(UsageError, match=r"no features per sample .* use_batch_norm=False and dropout_rate=-1"):
            method(z)


def test_the_protocol():
    hnet = HMLP([[3]], 2, 0, dropout_rate=0.0)
    assert isinstance(hnet, LinearHeadHyperNet)
    assert hnet.has_linear_head
    assert not isinstance(HPerturbWrapper(hnet, noise="independent"), LinearHeadHyperNet)


def test_refused_inputs():
    hnet = HMLP([[3]], 2, 4, num_cond_embs=2)
    for method in (hnet.features, hnet.feature_jacobian):
        with pytest.raises(ArgumentError, match=r"uncond_input: has shape \[1, 3\]"):
            method(torch.ones(1, 3), cond_id=0)
        with pytest.raises(
            ArgumentTypeError, match="uncond_input: has dtype torch.int64; pass a floating-point tensor"
        ):
            method(torch.ones(1, 2, dtype=torch.int64), cond_id=0)
        with pytest.raises(ArgumentError, match="cond_input: a condition is required"):
            method(torch.ones(1, 2))
        with pytest.raises(ArgumentError, match="cond_id: 2 does not exist"):
            method(torch.ones(1, 2), cond_id=2)
        with pytest.raises(ArgumentError, match=r"uncond_input: has leading dimensions \[3\], the condition \[2\]"):
            method(torch.ones(3, 2), cond_id=[0, 1])
    with pytest.raises(ArgumentError, match="uncond_input: is required"):
        hnet.features(cond_id=0)
    with pytest.raises(ArgumentError, match=r"uncond_input: has shape \[2\]"):
        hnet.feature_jacobian(torch.ones(2), cond_id=0)
    with pytest.raises(
        ArgumentError, match=r"uncond_input: has shape \[\]; pass a tensor with 2 as the last dimension"
    ):
        hnet.features(torch.tensor(1.0), cond_id=0)
