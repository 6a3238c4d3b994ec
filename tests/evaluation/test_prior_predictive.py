from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bayeshnet import BayesianModel, Prediction, likelihoods, prior_predictive, priors
from bayeshnet.errors import ArgumentError, ArgumentTypeError

X = torch.tensor([[1.0, 0.0], [1.0, 2.0]])


def test_moments_of_a_linear_model():
    """f = w x + b has variance s^2 (|x|^2 + 1)."""
    model = BayesianModel(nn.Linear(2, 1), priors.Laplace(1.5), likelihoods.Normal(scale=0.3))
    pred = prior_predictive(model, X, 20_000, generator=torch.Generator().manual_seed(0))
    assert isinstance(pred, Prediction)
    variance = 2 * 1.5**2 * torch.tensor([2.0, 6.0])
    relative = math.sqrt((6.0 - 1.0) / 20_000)  # a Laplace has kurtosis 6, a sum of them less
    torch.testing.assert_close(pred.epistemic.square(), variance, rtol=4 * relative, atol=0)
    torch.testing.assert_close(pred.std.square(), variance + 0.09, rtol=4 * relative, atol=0)


@pytest.mark.parametrize("prior", [priors.Hierarchical(by="unit"), priors.Horseshoe(0.1), priors.Normal(1.0)])
def test_a_generator_gives_the_same_and_leaves_the_global_one(prior):
    model = BayesianModel(nn.Linear(2, 1), prior, likelihoods.Normal(scale=0.3))
    before = torch.get_rng_state()
    one, other = (prior_predictive(model, X, 5, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(one.draws, other.draws)
    assert torch.equal(one.samples, other.samples)
    assert torch.equal(before, torch.get_rng_state())
    parts = prior_predictive(model, X, 5, batch_size=1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(parts.draws, one.draws)


def test_refused():
    model = BayesianModel(nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.3))
    with pytest.raises(ArgumentError, match="num_samples"):
        prior_predictive(model, X, 0)
    with pytest.raises(ArgumentTypeError, match="model"):
        prior_predictive(lambda x: x, X)
