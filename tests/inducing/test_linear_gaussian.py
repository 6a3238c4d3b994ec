"""The exact linear-Gaussian conditional of a layer, against dense algebra."""

from __future__ import annotations

import math

import pytest
import torch

from bayeshnet.errors import DensityError
from bayeshnet.inducing import LayerConditional, _fused_sample, linear_gaussian

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


@pytest.fixture(params=["Cholesky", "QR"])
def _either_root(request, monkeypatch):
    """The root of the matrix by either way, whatever the size of its entries."""
    if request.param == "QR":
        monkeypatch.setattr(linear_gaussian, "LARGEST", 0.0)
        monkeypatch.setattr(_fused_sample, "LARGEST", 0.0)


@pytest.mark.usefixtures("_either_root")
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


@pytest.mark.usefixtures("_either_root")
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


@pytest.mark.parametrize("size", [1e3, 1e6, 1e9])
@pytest.mark.parametrize(("points", "inputs"), [(20, 6), (6, 20)])
def test_dependent_features_of_any_size(points, inputs, size):
    """Three independent features among many, as from duplicated rows: I + A^T A is singular to float64 for A = 1e9."""
    num, rank, out = 200, 3, 2
    psi = torch.randn(num, points, rank, dtype=torch.float64) @ torch.randn(rank, inputs, dtype=torch.float64) * size
    learned = {
        "prior_scale": torch.ones(1, inputs, dtype=torch.float64),
        "offset": torch.zeros(inputs, out, dtype=torch.float64),
        "log_scale": torch.zeros(inputs, dtype=torch.float64),
        "log_spread": torch.zeros(out, dtype=torch.float64),
    }
    layer = LayerConditional.of(psi, torch.randn(points, out).double(), torch.zeros(points).double(), **learned)
    draws, log_prob = layer.rsample()
    # In the basis of singular vectors the draws have standard deviations 1 / sqrt(1 + s^2), and 1 where s = 0.
    _, singular, basis = torch.linalg.svd(psi, full_matrices=True)
    precision = torch.ones(num, inputs, 1, dtype=torch.float64)
    precision[:, :rank, 0] += singular[:, :rank].square()
    scores = (basis @ (draws - layer.mean.squeeze(1))) * precision.sqrt()
    normal = -0.5 * (scores.square() + math.log(2 * math.pi) - precision.log())
    # Rounding: 2e-16 of A, in a few hundred terms.
    accuracy = max(1e-6, 1e-12 * size)
    torch.testing.assert_close(log_prob, normal.sum((1, 2)), rtol=0, atol=accuracy)
    torch.testing.assert_close(layer.log_prob(draws), log_prob, rtol=0, atol=accuracy)
    # Each mean square is over 200 x 2 squares of variance 2.
    assert bool(((scores.square().mean((0, 2)) - 1).abs() < 5 * math.sqrt(2 / (num * out))).all())


def test_no_nan_in_silence():
    psi, targets, log_precision, learned = problem(2, 6, 4, 1, False)
    psi[1, 0, 0] = math.nan
    with pytest.raises(DensityError, match="not finite: features or precisions"):
        LayerConditional.of(psi, targets, log_precision, **learned)
