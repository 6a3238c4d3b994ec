"""The hand-written backward pass of batched linear layers against the plain formula."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from bayeshnet.layers.torch_modes import own_gradients_apply
from bayeshnet.mnets._fused_linear import batched_linear, fused_linear, plain_linear

# Outputs of one column, and the two ways of the weight gradient, narrow and flat, have code of their own.
SIZES = [(3, 4), (4, 1), (2, 9), (9, 2), (1, 1)]


def arguments(n_in, n_out, *, bias):
    parts = [torch.randn(3, 5, n_in), torch.randn(3, n_out, n_in), torch.randn(3, n_out)]
    return [part.double().requires_grad_() for part in parts[: 2 + bias]] + [None] * (not bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
def test_values_and_gradients_are_those_of_the_plain_formula(sizes, bias):
    given = arguments(*sizes, bias=bias)
    wanted = [part for part in given if part is not None]
    out, expected = fused_linear(*given), plain_linear(*given)
    assert torch.equal(out, expected)
    weighting = torch.randn_like(out)
    grads = torch.autograd.grad(out, wanted, weighting)
    for grad, other in zip(grads, torch.autograd.grad(expected, wanted, weighting), strict=True):
        torch.testing.assert_close(grad, other)
        assert grad.is_contiguous()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
def test_gradients_are_differences_in_both_modes(sizes, bias):
    given = arguments(*sizes, bias=bias)
    assert gradcheck(fused_linear, given, check_forward_ad=True)


def test_no_gradient_is_made_that_nobody_wants():
    h, weight, bias = arguments(3, 4, bias=True)
    out = fused_linear(h.detach(), weight, bias.detach())
    assert [fn is None for fn, _ in out.grad_fn.next_functions] == [True, False, True]
    out.sum().backward()
    assert h.grad is None
    assert bias.grad is None
    torch.testing.assert_close(weight.grad, h.detach().sum(1, keepdim=True).expand(3, 4, 3))


def test_it_is_used_where_own_gradients_apply():
    given = arguments(3, 4, bias=True)
    assert own_gradients_apply(given[0].device)
    assert "FusedLinear" in type(batched_linear(*given).grad_fn).__name__
    with torch.no_grad():
        assert batched_linear(*given).grad_fn is None
    mapped = torch.func.vmap(batched_linear)(*(part.unsqueeze(0) for part in given))
    assert "FusedLinear" not in type(mapped.grad_fn).__name__
    torch.testing.assert_close(mapped[0], plain_linear(*given))
