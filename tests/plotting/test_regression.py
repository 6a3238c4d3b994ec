from __future__ import annotations

import math
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.plotting import PredictionLike, regression_band


def a_prediction(x: torch.Tensor) -> SimpleNamespace:
    functions = x.sin() + torch.randn(200, 1) * x.abs()
    return SimpleNamespace(
        draws=functions, samples=functions + 0.1 * torch.randn_like(functions), mean=functions.mean(0)
    )


def labels_of(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_draws_mean_and_both_bands_sorted_by_input():
    x = torch.linspace(-2, 2, 40)[torch.randperm(40)].requires_grad_()
    prediction = a_prediction(x)  # with gradients, as nobody should have to detach before drawing
    assert isinstance(prediction, PredictionLike)
    ax = regression_band(x, prediction, train=(np.zeros(3), [1.0, 2.0, 3.0]), label="ours")
    assert labels_of(ax) == ["training data", "ours: mean", "ours: 90 % of functions", "ours: 90 % of observations"]
    points, mean = ax.lines
    assert points.get_xydata().tolist() == [[0, 1], [0, 2], [0, 3]]
    order = x.detach().argsort()
    np.testing.assert_allclose(mean.get_xdata(), x.detach()[order])
    np.testing.assert_allclose(mean.get_ydata(), prediction.mean.detach()[order], rtol=1e-6)
    functions, observations = ax.collections
    for band, draws in ((functions, prediction.draws), (observations, prediction.samples)):
        outline = band.get_paths()[0].vertices
        quantiles = draws.detach().quantile(torch.tensor([0.05, 0.95]), dim=0)
        assert outline[:, 1].min() == pytest.approx(quantiles.min().item(), rel=1e-5)
        assert outline[:, 1].max() == pytest.approx(quantiles.max().item(), rel=1e-5)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x", "y")


def test_draws_on_the_axes_given_and_keeps_their_labels():
    _, ax = plt.subplots()
    ax.set(xlabel="body mass index", ylabel="progression")
    x = np.linspace(0, 1, 10)
    draws = np.random.default_rng(0).normal(size=(50, 10))
    assert regression_band(x, draws, ax=ax, levels=(0.9, 0.5), color="C3") is ax
    assert labels_of(ax) == ["mean", "50 % of observations", "90 % of observations"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("body mass index", "progression")
    assert len(plt.get_fignums()) == 1


def test_accepts_a_column_of_inputs_and_half_precision():
    x = torch.linspace(0, 1, 5).unsqueeze(-1)
    ax = regression_band(x, torch.randn(30, 5, 1, dtype=torch.bfloat16), function_draws=torch.zeros(30, 5))
    assert len(ax.collections) == 2
    ax.figure.canvas.draw()  # and it can be rendered


X, DRAWS = torch.linspace(0, 1, 5), torch.zeros(10, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: regression_band(X, DRAWS.T), r"prediction: has shape \[5, 10\], and x has 5 rows.*the draws first"),
        (lambda: regression_band(X, DRAWS[:1]), "S >= 2"),
        (lambda: regression_band(torch.zeros(5, 2), DRAWS), r"x: has shape \[5, 2\].*x\[\.\.\., 0\]"),
        (lambda: regression_band(X * math.nan, DRAWS), "x: has 5 of 5 entries NaN"),
        (lambda: regression_band(X, DRAWS, levels=(90,)), "levels: holds 90"),
        (lambda: regression_band(X, DRAWS, function_draws=DRAWS[:, :3]), "function_draws: has shape"),
        (lambda: regression_band(X, a_prediction(X), function_draws=DRAWS), "one of the two"),
        (lambda: regression_band(X, DRAWS, train=(X, X[:2])), "5 inputs and 2 targets"),
        (lambda: regression_band([], DRAWS), "not empty"),
    ],
)
def test_bad_input_is_named_with_its_fix(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


def test_what_is_no_array_is_named():
    with pytest.raises(ArgumentTypeError, match="x: is a dict"):
        regression_band({"x": 1}, DRAWS)
    with pytest.raises(ArgumentTypeError, match="prediction: is a SimpleNamespace"):
        regression_band(X, SimpleNamespace(draws=DRAWS))
