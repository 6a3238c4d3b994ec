"""The fused draw of a conditional layer against the plain formula, which stands next to it."""

from __future__ import annotations

import math

import pytest
import torch

from bayeshnet.errors import DensityError
from bayeshnet.inducing._fused_sample import PseudoObservations

# Points, inputs, outputs, bias, targets and precisions for each sample, dtype of the features.
DRAWS = [
    (10, 4, 2, True, False, False, torch.float64),
    (10, 4, 1, False, True, True, torch.float32),
    (4, 7, 2, True, False, True, torch.float64),
    (3, 7, 1, False, True, False, torch.float32),
    (5, 5, 3, False, False, False, torch.float64),
]


def observations(points, inputs, out, bias, own_targets, own_precision, dtype):
    """Differentiable inputs, and what makes pseudo-observations of them."""
    num, size = 3, inputs + bias
    made = [
        torch.randn(num, points, inputs, dtype=torch.float64).to(dtype),
        torch.randn(*([num] if own_targets else []), points, out, dtype=torch.float64),
        torch.randn(*([num] if own_precision else []), points, dtype=torch.float64),
        torch.randn(size, out, dtype=torch.float64),
        0.3 * torch.randn(size, dtype=torch.float64),
        0.3 * torch.randn(out, dtype=torch.float64),
    ]
    prior = torch.rand(1, size, dtype=torch.float64) + 0.5

    def observed(features, targets, log_precision, *free):
        return PseudoObservations(features, bias, targets, log_precision, prior, *free)

    return [tensor.requires_grad_() for tensor in made], observed


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("case", DRAWS)
def test_gradient_is_that_of_the_plain_formula(case, create_graph):
    """The same draw from the same seed, and the same gradient, as from the Gaussian and PyTorch's own rules."""
    inputs, observed = observations(*case)
    found, gradients = [], []
    weight = None
    for draw in (lambda given: given.rsample(fused=True), lambda given: given.rsample(fused=False)):
        torch.manual_seed(1)
        outputs = draw(observed(*inputs))
        weight = weight or [torch.randn_like(output) for output in outputs]
        found.append(outputs)
        gradients.append(torch.autograd.grad(outputs, inputs, weight, create_graph=create_graph))
    assert type(found[0][0].grad_fn).__name__ == "_DrawBackward"
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)
    # Features in float32 have their gradient rounded to it.
    for mine, plain in zip(*gradients, strict=True):
        accuracy = 1e-11 if mine.dtype == torch.float64 else 1e-5
        torch.testing.assert_close(mine, plain, rtol=accuracy, atol=accuracy)


@pytest.mark.parametrize("case", [DRAWS[0], DRAWS[2]])
def test_closed_gradient_is_that_of_finite_differences(case):
    inputs, observed = observations(*case)

    def run(*args):
        torch.manual_seed(0)
        return observed(*args).rsample(fused=True)

    assert torch.autograd.gradcheck(run, inputs)
    small = observations(3, 2, 1, False, False, False, torch.float64)
    inputs, observed = small
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("points", [3, 8])
def test_large_features_take_the_other_root(points):
    inputs, observed = observations(points, 5, 1, True, False, False, torch.float64)
    inputs[0] = (1e6 * inputs[0].detach()).requires_grad_()
    given = observed(*inputs)
    weights, log_prob = given.rsample(fused=True)
    assert type(log_prob.grad_fn).__name__ != "_DrawBackward"
    torch.testing.assert_close(given.conditional().log_prob(weights), log_prob, rtol=0, atol=1e-6)
    with pytest.raises(DensityError, match="not finite: features or precisions"):
        observed(math.nan * inputs[0], *inputs[1:]).rsample(fused=True)


def test_what_the_fused_draw_does_not_cover():
    """Priors that differ between outputs, or are learned, take the plain formula."""
    inputs, observed = observations(*DRAWS[0])
    given = observed(*inputs)
    learned = given.prior_scale.clone().requires_grad_()
    for prior in (given.prior_scale.expand(2, -1), learned):
        weights, _ = PseudoObservations(
            given.features, True, given.targets, given.log_precision, prior, *inputs[3:]
        ).rsample(fused=True)
        assert type(weights.grad_fn).__name__ != "_DrawBackward"
        weights.sum().backward()
    assert bool(learned.grad.any())
