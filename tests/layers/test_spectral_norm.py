# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from bayeshnet.errors import ArgumentError
from bayeshnet.layers import SpectralNorm
from bayeshnet.layers.spectral_norm import leading_vectors


def sigma(weight, transposed=False):
    return torch.linalg.matrix_norm((weight.transpose(0, 1) if transposed else weight).flatten(1), 2)


@pytest.mark.parametrize("shape", [(5, 5), (40, 3), (3, 40), (6, 2, 3, 3), (4, 1, 5)])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("update", [False, True])
def test_divides_by_the_largest_singular_value(shape, transposed, update, dtype, device):
    weight = torch.randn(shape, dtype=dtype, device=device)
    norm = SpectralNorm([shape], transposed=transposed).to(device, dtype)
    (normed,) = norm.normalize([weight], update=update)
    torch.testing.assert_close(normed, weight / sigma(weight, transposed), rtol=1e-5, atol=1e-6)


def test_precise_in_float64():
    for _ in range(20):
        weight = torch.randn(30, 30, dtype=torch.float64)
        (normed,) = SpectralNorm([[30, 30]]).normalize([weight], update=False)
        assert abs(sigma(normed) - 1) < 1e-12


def test_extreme_scales_and_zero():
    norm = SpectralNorm([[4, 3]])
    weight = torch.randn(4, 3)
    for scale in (1e-8, 1e25):
        assert sigma(norm.normalize([weight * scale], update=False)[0]).item() == pytest.approx(1, rel=1e-4)
    zero = torch.zeros(4, 3, requires_grad=True)
    (normed,) = norm.normalize([zero], update=False)
    normed.sum().backward()
    assert normed.eq(0).all()
    assert zero.grad.isfinite().all()


def test_gradient_is_that_of_the_exact_quotient():
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    coefficients = torch.randn(4, 3, dtype=torch.float64)
    (ours,) = torch.autograd.grad(
        (SpectralNorm([[4, 3]]).normalize([weight], update=False)[0] * coefficients).sum(), weight
    )
    (exact,) = torch.autograd.grad((weight / sigma(weight) * coefficients).sum(), weight)
    torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-10)


def test_iteration_follows_a_weight_in_training():
    weight, norm = torch.randn(20, 10), SpectralNorm([[20, 10]])
    for _ in range(300):
        weight = weight + 0.003 * torch.randn(20, 10)
        (normed,) = norm.normalize([weight], update=True)
    assert sigma(normed).item() == pytest.approx(1, abs=0.02)


def test_vectors_change_only_with_update():
    norm = SpectralNorm([[4, 3], [2, 2]])
    weights = [torch.randn(4, 3), torch.randn(2, 2)]
    norm.normalize(weights, update=False)
    assert all(buffer.eq(0).all() for buffer in norm.buffers())
    norm.normalize(weights, update=True)
    before = [buffer.clone() for buffer in norm.buffers()]
    assert [b.norm().item() for b in before] == pytest.approx([1, 1])
    norm.normalize([torch.randn(4, 3), torch.randn(2, 2)], update=False)
    torch.testing.assert_close(list(norm.buffers()), before)


def test_two_forward_passes_before_backward():
    norm, weight = SpectralNorm([[4, 3]]), torch.randn(4, 3, requires_grad=True)
    (norm.normalize([weight], update=True)[0] + norm.normalize([weight], update=True)[0]).sum().backward()
    assert weight.grad.isfinite().all()


def test_inside_vmap_and_grad():
    norm, weights = SpectralNorm([[4, 3]]), torch.randn(5, 4, 3)
    for update in (False, True):
        out = torch.func.vmap(lambda w, update=update: norm.normalize([w], update=update)[0])(weights)
        torch.testing.assert_close(out, torch.stack([w / sigma(w) for w in weights]))
        grad = torch.func.grad(lambda w, update=update: norm.normalize([w], update=update)[0].sum())(weights[0])
        assert grad.isfinite().all()
    assert norm.v_0.eq(0).all()


def test_state_is_kept():
    norm = SpectralNorm([[4, 3]], transposed=[True])
    norm.normalize([torch.randn(4, 3)], update=True)
    fresh = SpectralNorm([[4, 3]], transposed=[True])
    fresh.load_state_dict(norm.state_dict())
    for other in (fresh, copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        torch.testing.assert_close(other.v_0, norm.v_0)
    assert list(norm.state_dict()) == ["v_0"]
    assert isinstance(norm, nn.Module)


def test_leading_vectors_are_singular_vectors():
    matrix = torch.randn(6, 4, dtype=torch.float64)
    u, v = leading_vectors(matrix)
    torch.testing.assert_close(matrix @ v, sigma(matrix) * u)
    torch.testing.assert_close(matrix.T @ u, sigma(matrix) * v)


def test_errors():
    with pytest.raises(ArgumentError, match=r"shapes\[1\]: \[3\] is no matrix"):
        SpectralNorm([[4, 3], [3]])
    with pytest.raises(ArgumentError, match="transposed: has 2 entries for 1 shapes"):
        SpectralNorm([[4, 3]], transposed=[True, False])
    with pytest.raises(ArgumentError, match=r"weights: have shapes \[\[3, 4\]\]; expected \[\[4, 3\]\]"):
        SpectralNorm([[4, 3]]).normalize([torch.randn(3, 4)], update=False)
