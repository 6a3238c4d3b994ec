from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

from bayeshnet import BayesianModel, likelihoods, priors
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.evaluation import prior_predictive
from bayeshnet.plotting import prior_functions


def model(d=1, out=1):
    net = nn.Sequential(nn.Linear(d, 5), nn.Tanh(), nn.Linear(5, out))
    return BayesianModel(net, priors.Normal(1.0), likelihoods.Normal(scale=0.2))


def test_lines_are_functions_of_the_prior_along_a_slice():
    m, x = model(3, 2), torch.randn(30, 3)
    ax = prior_functions(m, x, column=1, output=1, num_functions=4, generator=torch.Generator().manual_seed(0))
    grid = x.median(0).values.repeat(200, 1)
    grid[:, 1] = torch.linspace(float(x[:, 1].min()), float(x[:, 1].max()), 200)
    f = prior_predictive(m, grid, 500, generator=torch.Generator().manual_seed(0)).functions[..., 1]
    assert len(ax.lines) == 4
    for i, line in enumerate(ax.lines):
        np.testing.assert_allclose(line.get_ydata(), f[i], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(line.get_xdata(), grid[:, 1], rtol=1e-6)
    top = ax.collections[0].get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx(float(torch.quantile(f.double(), 0.95, dim=0).max()), rel=1e-5)
    assert "input 1, the others at their medians" in ax.get_xlabel()


def test_given_axes_and_labels():
    _, ax = plt.subplots()
    assert prior_functions(model(), torch.randn(9, 1), ax=ax, num_functions=1, label="a", level=0.5) is ax
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["a: 1 function", "a: 50 % of functions", "a: 50 % of observations"]


@pytest.mark.parametrize(
    ("x", "options", "error", "match"),
    [
        ([1.0], {}, ArgumentTypeError, "x: is a list"),
        (torch.zeros(3, 1), {"column": 1}, ArgumentError, "column: is 1"),
        (torch.zeros(3, 1), {"output": 2}, ArgumentError, "output: is 2"),
        (torch.zeros(3, 1), {"level": 1.0}, ArgumentError, "level: is 1"),
        (torch.full((3, 1), float("nan")), {}, ArgumentError, "not finite"),
    ],
)
def test_refused(x, options, error, match):
    with pytest.raises(error, match=match):
        prior_functions(model(), x, **options)
