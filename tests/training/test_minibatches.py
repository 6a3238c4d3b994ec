"""Rows in memory in minibatches, and how many rows and steps there are by default."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from bayeshnet import AutoHypernet, BayesianModel, fit, likelihoods
from bayeshnet.errors import ArgumentError, DatasetSizeWarning
from bayeshnet.training._minibatches import Minibatches, batched, number_of_steps
from tests.problems import bnn


def test_every_row_once_in_a_pass():
    x, index = torch.randn(10, 2), torch.arange(10)
    data = {"x": (x, 3.0, torch.zeros(4)), "y": index}
    batches = Minibatches(data, rows=10, batch_size=4)
    torch.manual_seed(0)
    first, second = list(batches), list(batches)
    assert len(batches) == len(first) == 3
    assert [len(batch["y"]) for batch in first] == [4, 3, 3]
    for batch in first:
        assert torch.equal(batch["x"][0], x[batch["y"]])  # rows stay together
        assert batch["x"][1:] == (3.0, data["x"][2])
    order = [torch.cat([batch["y"] for batch in one]) for one in (first, second)]
    assert all(torch.equal(one.sort().values, index) for one in order)
    assert not torch.equal(*order)


def linear(size):
    return BayesianModel(nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.5), dataset_size=size)


def test_what_is_chosen(caplog):
    x = torch.zeros(10_001, 2)
    few, many = (x[1:], x[1:, 0]), (x, x[:, 0])
    assert batched(few, linear(10_000), None) is few
    chosen = batched(many, linear(10_001), None)
    assert (chosen.rows, chosen.batch_size, len(chosen)) == (10_001, 910, 11)
    with caplog.at_level(logging.INFO, logger="bayeshnet"):
        assert batched(many, linear(None), None) is many
    assert "10001 of 10001 rows, as dataset_size is not theirs" in caplog.text
    assert batched(few, linear(10_000), 20_000) is few
    assert batched(x, lambda x: None, None) is x
    assert number_of_steps(None, None, 151) == 3020


def test_epochs():
    model, (x, y) = bnn(dataset_size=30)
    guide = AutoHypernet(model, example=(x, y), conditional=None)
    options = {"epochs": 2, "num_particles": 1, "progress": False}
    assert len(fit(model, guide, (x, y), **options)) == 2
    assert len(fit(model, guide, [(x[:15], y[:15]), (x[15:], y[15:])], **options)) == 4
    loader = DataLoader(TensorDataset(x, y), batch_size=8)
    history = fit(model, guide, loader, **options)
    assert (len(history), history.rows, history.batch_size) == (8, 30, 8)
    assert len(fit(model, guide, (x, y), batch_size=10, **options)) == 6

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(zip(x, y, strict=True))

    with pytest.raises(ArgumentError, match="epochs: is 2, and the number of batches of the data is not known"):
        fit(model, guide, DataLoader(Stream(), batch_size=8), **options)
    for none in ([], DataLoader(TensorDataset(x[:3], y[:3]), batch_size=8, drop_last=True)):
        with pytest.raises(ArgumentError, match="data: is an empty iterable; pass at least one batch"):
            fit(model, guide, none, **options)


def test_the_size_of_the_data_set_is_checked():
    model, (x, y) = bnn()
    guide = AutoHypernet(model, example=(x, y), conditional=None)
    with pytest.warns(DatasetSizeWarning, match="batches of 10 out of 30 rows, and the model has no dataset_size"):
        fit(model, guide, (x, y), 2, batch_size=10, progress=False)
    other, _ = bnn(dataset_size=300)
    with pytest.warns(DatasetSizeWarning, match="dataset_size is 300, and a pass through the data has 30 rows"):
        fit(other, guide, (x, y), 2, batch_size=10, progress=False)


def test_minibatches_find_the_posterior():
    """Of a mean with a Gaussian prior: exact with all rows, and with minibatches up to what a falling rate leaves."""
    torch.manual_seed(0)
    x = torch.ones(400, 1)
    y = 1.0 + 0.5 * torch.randn(400)
    net = nn.Linear(1, 1, bias=False)
    model = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.5), dataset_size=400)
    guide = AutoHypernet(model, example=(x, y), conditional=None, family="mean_field")
    fit(model, guide, (x, y), epochs=100, batch_size=100, num_particles=4, lr=0.05, progress=False)
    posterior = guide.get_posterior()
    precision = 1.0 + 400 / 0.25
    std = precision**-0.5
    assert float(posterior.mean.detach()) == pytest.approx(float(y.sum()) / 0.25 / precision, abs=0.5 * std)
    assert float(posterior.stddev.detach()) == pytest.approx(std, rel=0.2)
