"""The exact linear-Gaussian conditional of a layer, against dense algebra."""

from __future__ import annotations

import math

import pytest
import torch

from bayeshnet.distributions import LayerConditional
from bayeshnet.errors import DensityError

# Samples, points, size, outputs, whether each output has prior scales of its own; both sides of points = size.
CASES = [(3, 10, 4, 2, False), (3, 4, 7, 2, False), (2, 5, 5, 1, False), (3, 10, 4, 2, True), (3, 4, 7, 3, True)]


def problem(num, points, size, out, own):
    psi = torch.randn(num, points, size, dtype=torch.float64)
    learned = {
        "prior_scale": torch.rand(out if own else 1, size, dtype=torch.float64) + 0.5,
        "offset": torch.randn(size, out, dtype=torch.float64),
        "log_scale": 0.3 * torch.randn(size, dtype=torch.float64),
        "log_spread": 0.3 * torch.randn(out, dtype=torch.float64),
    }
    return psi, torch.randn(points, out).double(), torch.randn(points).double(), learned


def dense(psi, targets, log_precision, learned, s, o):
    """Mean and covariance of column o for sample s, by inverting the precision."""
    scales = learned["prior_scale"]
    features = psi[s] * scales[o if len(scales) > 1 else 0]
    prior = torch.diag((-2 * learned["log_scale"]).exp())
    weighted = features.T * log_precision.exp()
    covariance = torch.linalg.inv(prior + weighted @ features)
    mean = covariance @ (prior @ learned["offset"][:, o] + weighted @ targets[:, o])
    return mean, covariance * (2 * learned["log_spread"][o]).exp()


@pytest.mark.parametrize("case", CASES)
def test_density_is_that_of_the_dense_gaussian(case):
    psi, targets, log_precision, learned = problem(*case)
    num, _, size, out, _ = case
    layer = LayerConditional.of(psi, targets, log_precision, **learned)
    weights = torch.randn(num, size, out, dtype=torch.float64)
    expected = torch.stack(
        [
            sum(
                torch.distributions.MultivariateNormal(*dense(psi, targets, log_precision, learned, s, o)).log_prob(
                    weights[s, :, o]
                )
                for o in range(out)
            )
            for s in range(num)
        ]
    )
    torch.testing.assert_close(layer.log_prob(weights), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_moments_of_draws(case):
    psi, targets, log_precision, learned = problem(*case)
    num = 100_000
    layer = LayerConditional.of(psi[:1].expand(num, *psi.shape[1:]), targets, log_precision, **learned)
    draws, log_prob = layer.rsample()
    torch.testing.assert_close(layer.log_prob(draws), log_prob)
    for o in range(case[3]):
        mean, covariance = dense(psi, targets, log_precision, learned, 0, o)
        std = covariance.diagonal().sqrt()
        # Four standard errors of a mean, and of a covariance of a Gaussian: sqrt((c_ii c_jj + c_ij^2) / N).
        assert bool(((draws[..., o].mean(0) - mean).abs() < 4 * std / math.sqrt(num)).all())
        error = ((std[:, None] * std).square() + covariance.square()).sqrt() / math.sqrt(num)
        assert bool(((torch.cov(draws[..., o].T) - covariance).abs() < 5 * error).all())


@pytest.mark.parametrize("points", [3, 8])
def test_gradients_of_draw_and_density(points):
    psi, targets, log_precision, learned = problem(2, points, 5, 2, False)
    inputs = [t.requires_grad_() for t in (psi, targets, log_precision, *learned.values())]

    def run(psi, targets, log_precision, *rest):
        torch.manual_seed(0)
        layer = LayerConditional.of(psi, targets, log_precision, **dict(zip(learned, rest, strict=True)))
        draw, log_prob = layer.rsample()
        return draw, log_prob, layer.log_prob(draw)

    assert torch.autograd.gradcheck(run, inputs)


def test_targets_may_differ_between_samples():
    psi, targets, log_precision, learned = problem(3, 6, 4, 2, False)
    weights = torch.randn(3, 4, 2, dtype=torch.float64)
    each = torch.stack([targets, 2 * targets, -targets])
    whole = LayerConditional.of(psi, each, log_precision, **learned).log_prob(weights)
    for s in range(3):
        single = LayerConditional.of(psi[s : s + 1], each[s], log_precision, **learned)
        torch.testing.assert_close(single.log_prob(weights[s : s + 1])[0], whole[s])


def test_no_nan_in_silence():
    psi, targets, log_precision, learned = problem(2, 6, 4, 1, False)
    psi[1, 0, 0] = math.nan
    with pytest.raises(DensityError, match="not positive definite: features or precisions"):
        LayerConditional.of(psi, targets, log_precision, **learned)
