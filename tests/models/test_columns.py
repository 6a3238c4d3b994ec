"""Frames: numbers in the order of training, categories one-hot or embedded, and the same after a file."""

from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from bayeshnet import AutoHypernet, BayesianModel, fit, likelihoods, load_posterior, metrics, predict, save
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.evaluation import predict_summary
from bayeshnet.models import Columns, Standardization


def frame(rows=12):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "age": rng.integers(20, 60, rows),
            "city": pd.Categorical(rng.choice(["Bern", "Basel", "Chur"], rows), categories=["Bern", "Basel", "Chur"]),
            "income": rng.normal(5e4, 1e4, rows),
            "smoker": rng.random(rows) < 0.5,
            "plan": rng.choice(["a", "b"], rows),
        }
    )


def targets(rows=12):
    return pd.Series(np.random.default_rng(1).normal(0.0, 1.0, rows), name="y")


def one_hot(of):
    """What the tensor of the frame has to be, written out."""
    parts = [of["age"].to_numpy(float), of["income"].to_numpy(float)]
    parts += [(of["city"] == value).to_numpy(float) for value in ("Bern", "Basel", "Chur")]
    parts += [(of["smoker"] == value).to_numpy(float) for value in (False, True)]
    parts += [(of["plan"] == value).to_numpy(float) for value in ("a", "b")]
    return torch.tensor(np.stack(parts, 1)).float()


def test_numbers_come_in_the_order_of_training_and_categories_follow():
    data = frame()
    columns = Columns(data)
    assert repr(columns) == "age, income; one-hot: city (3), smoker (2), plan (2); 9 columns in all"
    assert columns.names == ["age", "income", "city", "smoker", "plan"]
    assert torch.equal(columns.tensor(data), one_hot(data))
    shuffled = data[["plan", "income", "smoker", "age", "city"]]
    assert torch.equal(columns.tensor(shuffled), one_hot(data))
    as_text = data.assign(city=data["city"].astype(str))
    assert torch.equal(columns.tensor(as_text), one_hot(data))
    assert torch.equal(columns.tensor(data.iloc[[3]]), one_hot(data)[3:4])  # with the categories of training
    codes = Columns(data, categorical="embedding").tensor(data)
    assert codes.shape == (12, 5)
    assert torch.equal(codes[:, 2], torch.tensor(data["city"].cat.codes.to_numpy()).float())


def test_whole_numbers_may_be_categories_too():
    data = pd.DataFrame({"zip": [4001, 8001, 4001], "x": [0.0, 1.0, 2.0]})
    columns = Columns(data, categories={"zip": [4001, 8001, 9000]})
    assert columns.tensor(data).tolist() == [[0, 1, 0, 0], [1, 0, 1, 0], [2, 1, 0, 0]]


def test_what_does_not_fit_is_refused_by_name():
    data = frame()
    columns = Columns(data)
    gaps = data.copy()
    gaps.loc[[2, 5], "income"] = np.nan
    for given, message in (
        (data.drop(columns=["age", "plan"]), "lacks the columns age, plan"),
        (data.assign(extra=1.0), "has columns extra that the model was not built for"),
        (gaps, "column 'income' has 2 missing values (rows [2, 5])"),
        (data.assign(city="Zug"), "column 'city' has the categories Zug, which were not in the training frame"),
        (data.assign(plan=None), "column 'plan' has 12 missing values"),
    ):
        with pytest.raises(ArgumentError, match=re.escape(message)):
            columns.tensor(given)
    with pytest.raises(ArgumentTypeError, match="column 'age' has dtype (object|str), and held numbers"):
        columns.tensor(data.assign(age="old"))
    with pytest.raises(ArgumentTypeError, match=r"column 'when' has dtype datetime64.*neither numbers nor categories"):
        Columns(pd.DataFrame({"when": pd.to_datetime(["2026-01-01"])}))
    with pytest.raises(ArgumentError, match="column 'income' has 2 missing values"):
        Columns(gaps)
    with pytest.raises(ArgumentTypeError, match="has the column 0, an int"):
        Columns(pd.DataFrame([[1.0]]))
    with pytest.raises(ArgumentTypeError, match="frame: is an ndarray|frame: is a ndarray"):
        Columns(np.zeros((2, 2)))
    embedded = Columns(data, categorical="embedding")
    with pytest.raises(ArgumentError, match="the network has no layer for that; put columns.embedding"):
        BayesianModel(nn.Linear(5, 1), likelihood=likelihoods.Normal(scale=0.3), columns=embedded)
    with pytest.raises(ArgumentTypeError, match="columns: is a list"):
        BayesianModel(nn.Linear(5, 1), likelihood=likelihoods.Normal(scale=0.3), columns=["a"])


def test_unknown_categories_are_zeros_if_that_is_said():
    data = frame()
    new = data.assign(city="Zug")
    assert bool((Columns(data, unknown="zeros").tensor(new)[:, 2:5] == 0).all())
    columns = Columns(data, categorical="embedding", unknown="zeros")
    layer = columns.embedding(3)
    with torch.no_grad():
        out = layer(columns.tensor(new))
    assert out.shape == (12, layer.out_features)
    assert bool((out[:, 2:5] == 0).all())
    assert bool((out[:, 5:] != 0).all())


def network(how, columns):
    torch.manual_seed(0)
    if how == "one_hot":
        return nn.Sequential(nn.Linear(columns.width, 4), nn.Tanh(), nn.Linear(4, 1))
    layer = columns.embedding(2)
    return nn.Sequential(layer, nn.Linear(layer.out_features, 4), nn.Tanh(), nn.Linear(4, 1))


@pytest.mark.parametrize("how", ["one_hot", "embedding"])
def test_a_model_takes_frames_from_fit_to_file(how, tmp_path):
    data, y = frame(), targets()
    columns = Columns(data, categorical=how)
    model = BayesianModel(
        network(how, columns),
        likelihood=likelihoods.Normal(scale=0.3),
        columns=columns,
        standardize=(data, y),
        dataset_size=12,
    )
    assert f"columns: {columns}" in repr(model)
    inside = model.standardized_inputs(model.as_inputs(data))
    assert torch.allclose(inside[:, :2].mean(0), torch.zeros(2), atol=1e-6)  # columns of numbers only
    assert torch.equal(inside[:, 2:], columns.tensor(data)[:, 2:])
    guide = AutoHypernet(model, example=(data, y))
    fit(model, guide, (data, y), steps=3, batch_size=5, num_particles=2, validation=(data, y), progress=False)
    draws = guide.sample_posterior(4)
    of_frame = predict(model, draws, data).functions
    assert torch.equal(of_frame, predict(model, draws, columns.tensor(data, dtype=torch.double)).functions)
    shuffled = data[data.columns[::-1]]
    assert torch.equal(predict(model, draws, shuffled).functions, of_frame)
    summary = predict_summary(model, draws, data, targets=y)
    assert summary.log_prob.shape == (12,)
    save(tmp_path / "run", model=model, guide=guide)
    loaded = load_posterior(tmp_path / "run", network(how, columns))
    assert repr(loaded.model.columns) == repr(columns)
    torch.manual_seed(3)
    first = predict(model, guide, data, 5)
    torch.manual_seed(3)
    second = predict(loaded.model, loaded.guide, shuffled, 5)
    assert torch.equal(first.draws, second.draws)
    again = pickle.loads(pickle.dumps(copy.deepcopy(columns)))
    assert torch.equal(again.tensor(data), columns.tensor(data))


def test_the_frame_of_the_statistics_says_the_columns():
    data, y = frame(), targets()
    model = BayesianModel(nn.Linear(9, 1), likelihood=likelihoods.Normal(scale=0.3), standardize=(data, y))
    assert model.columns.width == 9
    assert isinstance(model.units.standardization, Standardization)
    with pytest.raises(ArgumentError, match="lacks the columns age"):
        model.as_inputs(data.drop(columns="age"))


def test_a_frame_beside_another_input():
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.image = nn.Linear(9, 1), nn.Conv1d(1, 1, 2)

        def forward(self, table, image):
            return self.table(table) + self.image(image).mean((1, 2)).unsqueeze(1)

    data, y = frame(), targets()
    data = data.assign(income=data["income"] / 5e4, age=data["age"] / 40.0)
    model = BayesianModel(Beside(), likelihood=likelihoods.Normal(scale=0.3), columns=data)
    guide = AutoHypernet(model, example=((data, np.zeros((12, 1, 4))), y))
    functions = predict(model, guide.sample_posterior(2), {"image": np.zeros((12, 1, 4)), "table": data}).functions
    assert functions.shape == (2, 12)


def test_targets_in_a_frame_are_the_tensor():
    """Several targets of a frame, in a fit, in scores of predictions and in a summary."""
    inputs = pd.DataFrame({"age": [20.0, 35.0, 50.0, 28.0, 44.0], "city": ["Bern", "Chur", "Bern", "Chur", "Basel"]})
    targets = pd.DataFrame({"height": [170.0, 180.0, 165.0, 175.0, 190.0], "weight": [60.0, 80.0, 55.0, 77.0, 90.0]})
    y = torch.tensor(targets.to_numpy())
    net = nn.Sequential(nn.Linear(4, 2))
    model = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.5), standardize=(inputs, targets))
    draws = {name: torch.randn(6, *shape) for name, shape in model.latent_shapes.items()}
    pred = predict(model, draws, inputs)
    assert torch.equal(pred.log_prob(targets), pred.log_prob(y))
    assert metrics.rmse(pred.mean, targets) == metrics.rmse(pred.mean, y)
    ours, theirs = (predict_summary(model, draws, inputs, targets=given).log_prob for given in (targets, y))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    with pytest.raises(ArgumentTypeError, match="holds no numbers"):
        pred.log_prob(inputs)


def test_a_name_of_two_columns_is_refused_when_they_are_learned():
    twice = pd.DataFrame(np.zeros((3, 2)), columns=["a", "a"])
    with pytest.raises(ArgumentError, match=re.escape("several columns of the names ['a']")):
        Columns(twice)
