from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from bayeshnet import AutoHypernet, BayesianModel, fit, freeze, likelihoods, sample_networks
from bayeshnet.errors import ArgumentError, ArgumentTypeError


@pytest.mark.parametrize(
    ("given", "message"),
    [
        # A distribution can be called, and would pass for a function of the outputs that it does not look at.
        (dist.Normal(0.0, 1.0), r"is a Normal; .* such as lambda f: dist\.Normal\(\.\.\.\)"),
        (dist.Normal(torch.zeros(2), 1.0).to_event(1), r"is an Independent; .* lambda f: dist\.Independent"),
        (dist.Poisson, r"is the class Poisson; .* such as lambda f: dist\.Poisson\(\.\.\.\)"),
        (likelihoods.Normal, r"is the class Normal; pass what it makes, Normal\(\.\.\.\)\.$"),
        ("normal", r"is a str; pass one of bayeshnet\.likelihoods.* to a distribution of Pyro\.$"),
    ],
)
def test_what_is_no_likelihood(given, message):
    with pytest.raises(ArgumentTypeError, match=f"^likelihood: {message}"):
        BayesianModel(nn.Linear(1, 1), likelihood=given)


def test_nan_targets_name_the_option_that_leaves_them_out():
    x, y = torch.randn(8, 1), torch.randn(8)
    y[2] = torch.nan
    gaps = BayesianModel(nn.Linear(1, 1), likelihood=likelihoods.Normal(scale=0.1))
    with pytest.raises(ArgumentError, match=r"row 2\. .* missing='ignore'"):
        AutoHypernet(gaps, example=(x, y))
    # A gap in the inputs is none that the option would leave out.
    bad = torch.where(torch.arange(8).unsqueeze(1) == 3, torch.nan, x)
    with pytest.raises(ArgumentError, match="NaN in example") as caught:
        AutoHypernet(gaps, example=(bad, torch.zeros(8)))
    assert "missing" not in str(caught.value)


def test_weights_of_a_wrong_shape_are_called_by_it():
    x, y = torch.randn(8, 1), torch.randn(8)
    model = BayesianModel(nn.Linear(1, 1), likelihood=likelihoods.Normal(scale=0.1))
    guide = AutoHypernet(model, example=(x, y))
    for weight, shown in (
        (torch.ones(8, 1), r"torch\.float32 \[8, 1\]"),
        (torch.ones(8).long(), r"torch\.int64 \[8\]"),
    ):
        with pytest.raises(ArgumentError, match=rf"the third one {shown} and no weight of each row"):
            fit(model, guide, (x, y, weight), steps=1, progress=False)


@pytest.mark.parametrize("function", [freeze, sample_networks])
def test_the_guide_comes_first(function):
    x, y = torch.randn(8, 1), torch.randn(8)
    model = BayesianModel(nn.Linear(1, 1), likelihood=likelihoods.Normal(scale=0.1))
    guide = AutoHypernet(model, example=(x, y))
    with pytest.raises(ArgumentTypeError, match="^guide: is a model; pass the fitted guide first"):
        function(model, guide, 5)
