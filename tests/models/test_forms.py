"""Forms of data: arrays, frames and several inputs are the tensors that they stand for, and what is none is refused."""

from __future__ import annotations

import os
import re

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader, TensorDataset

from bayeshnet import AutoHypernet, AutoHypernetNormal, BayesianModel, diagnose, fit, likelihoods, predict
from bayeshnet.errors import ArgumentError, ArgumentTypeError, RowDataWarning
from bayeshnet.evaluation import importance_sample, predict_summary
from bayeshnet.metrics import brier_score, crps, rmse
from bayeshnet.models import Standardization
from bayeshnet.models.forms import fit_together, joined, rows_of


def chain(inputs=2, outputs=1):
    return nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), nn.Linear(4, outputs))


def made(net=None, **options):
    torch.manual_seed(0)
    return BayesianModel(net or chain(), likelihood=likelihoods.Normal(scale=0.3), **options)


def data():
    rng = np.random.default_rng(0)
    return rng.standard_normal((8, 2)), rng.standard_normal(8)


def test_arrays_are_the_tensors_that_they_hold():
    model, (x, y) = made(dataset_size=8), data()
    tensors = torch.as_tensor(x).float(), torch.as_tensor(y).float()
    found = []
    for given in ((x, y), tensors):
        torch.manual_seed(1)
        guide = AutoHypernet(model, example=given)
        history = fit(model, guide, given, steps=3, batch_size=4, num_particles=2, progress=False, validation=given)
        torch.manual_seed(2)
        pred = predict(model, guide, given[0], 6)
        weighted = importance_sample(model, guide, given, 10)
        report = diagnose(model, guide, given, num_samples=100)
        summary = predict_summary(model, guide, given[0], 5, targets=given[1], generator=torch.Generator())
        log_prob = pred.log_prob(given[1])
        values = [torch.tensor(history.losses), pred.mean, weighted.log_weights, summary.log_prob, log_prob]
        found.append([*values, torch.tensor(report.values["elbo"])])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_whole_numbers_stay_whole_and_floats_take_the_networks_dtype():
    model = made()
    assert model.as_inputs(np.zeros((3, 2))).dtype == torch.float32
    assert model.as_inputs(np.zeros((3, 2), dtype=np.float16)).dtype == torch.float32
    assert model.as_inputs(np.arange(3)).dtype == torch.int64
    assert model.as_inputs(np.arange(3, dtype=np.uint16)).dtype == torch.int64
    assert model.as_inputs(np.array([True, False])).dtype == torch.bool
    assert model.as_inputs(pd.Series([1.0, 2.0])).dtype == torch.float32
    assert model.double().as_inputs(np.zeros((3, 2), dtype=np.float32)).dtype == torch.float64
    frozen = np.zeros(3)
    frozen.flags.writeable = False
    assert model.as_inputs(frozen).shape == (3,)
    flipped = np.arange(4.0)[::-1]
    assert model.as_targets(flipped).tolist() == [3.0, 2.0, 1.0, 0.0]


def test_what_cannot_be_inputs_is_refused_by_name():
    model, (x, y) = made(), data()
    packed = pack_padded_sequence(torch.zeros(2, 3, 1), torch.tensor([3, 1]), batch_first=True)
    ragged = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged)
    cases = [
        (packed, ArgumentTypeError, "x: is a PackedSequence"),
        (np.array(["a", "b"]), ArgumentTypeError, "x: is a ndarray of dtype <U1, which holds no numbers"),
        (pd.DataFrame({"a": [1.0]}), ArgumentTypeError, r"columns ['a'], and the model does not know"),
        ([1.0, 2.0], ArgumentTypeError, "x: is a list; pass a tensor, torch.tensor(x)"),
        (pd.Series(["a", "b"], dtype="category"), ArgumentTypeError, "x: is a Series of dtype category"),
        (pd.Series([1, None], dtype="Int64"), ArgumentError, "x: has missing values"),
        (ragged, ArgumentTypeError, "x: is a nested tensor"),
    ]
    for given, error, message in cases:
        with pytest.raises(error, match=re.escape(message)):
            model.as_inputs(given)
        with pytest.raises(error, match=re.escape(message)):
            AutoHypernetNormal(model, example=(given, y))
    with pytest.raises(ArgumentTypeError, match=r"(?s)y: is a ndarray of dtype object.*codes"):
        model(torch.as_tensor(x).float(), np.array(["a"] * 8, dtype=object))
    with pytest.raises(ArgumentTypeError, match=r"has 6 arguments; the model takes x, y, weight, noise, exposure"):
        model(*[torch.zeros(8)] * 6)
    with pytest.raises(ArgumentTypeError, match=r"has the arguments \['z'\]"):
        model(torch.zeros(8, 2), z=1)


def test_rows_are_counted_and_divided_in_every_form():
    x = {"ids": torch.arange(6).reshape(3, 2), "more": [torch.ones(3), None], "scale": 2.0}
    some = rows_of(x, torch.tensor([2, 0]))
    assert some["ids"].tolist() == [[4, 5], [0, 1]]
    assert len(some["more"][0]) == 2
    assert some["scale"] == 2.0
    again = joined([rows_of(x, slice(0, 1)), rows_of(x, slice(1, 3))])
    assert torch.equal(again["ids"], x["ids"])
    assert not fit_together(x, {**x, "ids": torch.zeros(3, 5)})


def test_statistics_are_of_every_form():
    x, y = data()
    u, v = x, 3.0 + 2.0 * x[:, :1]
    tensors = torch.as_tensor(u), torch.as_tensor(v)
    expected = Standardization.of(tensors, torch.as_tensor(y))
    for found in (
        Standardization.of((u, v), y),
        Standardization.of([u, v], pd.Series(y)),
        made(nn.Bilinear(2, 1, 1), standardize=(u, v, y)).units.standardization,
        made(nn.Bilinear(2, 1, 1), standardize={"x": (u, v), "y": y}).units.standardization,
        made(nn.Bilinear(2, 1, 1), standardize=[[u[:4], v[:4], y[:4]], [u[4:], v[4:], y[4:]]]).units.standardization,
    ):
        for one, other in zip(found.inputs, expected.inputs, strict=True):
            assert torch.allclose(one.loc, other.loc, atol=1e-12)
            assert torch.allclose(one.scale, other.scale, atol=1e-12)
    by_name = made(nn.Bilinear(2, 1, 1), standardize=({"input2": v, "input1": u}, y))
    assert list(by_name.units.standardization.inputs) == ["input2", "input1"]
    in_units = by_name.standardized_inputs({"input1": torch.as_tensor(u), "input2": torch.as_tensor(v)})
    assert torch.allclose(in_units["input2"].mean(), torch.zeros((), dtype=torch.float32), atol=1e-6)


def test_large_numbers_in_float64_are_standardised_before_they_are_rounded():
    x = 1.7e9 + np.arange(8.0).reshape(-1, 1)  # seconds since 1970: float32 has steps of 128 there
    y = 1e9 + np.arange(8.0)
    model = made(chain(1), standardize=(x, y))
    inside = model.standardized_inputs(model.as_inputs(x))
    assert torch.allclose(inside.std(correction=0), torch.ones(()), atol=1e-5)
    guide = AutoHypernetNormal(model, example=(x, y))
    assert bool(torch.isfinite(predict(model, guide, x, 3).mean).all())


def test_reference_rows_of_batch_norm_are_of_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.norm, self.head = nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)

        def forward(self, u, v):
            return self.head(torch.tanh(self.norm(self.left(u) + v)))

    x, y = data()
    v = np.ones((8, 4))
    for given in ((x, v), [x, v], {"u": x, "v": v}):
        model = made(Two())
        model.set_reference_rows(given)
        assert model.batch_norm.rows_kept == 8
        guide = AutoHypernetNormal(model, example=(given, y))
        draws = guide.sample_posterior(3)
        together, divided = predict(model, draws, given), predict(model, draws, given, batch_size=3)
        assert torch.allclose(together.functions, divided.functions, atol=1e-5)


def test_a_third_column_of_a_loader_is_not_silently_taken_for_weights():
    x, y = (torch.as_tensor(part).float() for part in data())
    model = made(dataset_size=8)
    guide = AutoHypernetNormal(model, example=(x, y))
    loader = DataLoader(TensorDataset(x, y, torch.ones(8)), batch_size=4)
    with pytest.warns(RowDataWarning, match=r"torch.float32 \[4\], is taken for weights of the rows. Say so by name"):
        fit(model, guide, loader, steps=2, num_particles=2, progress=False)
    named = [{"x": x, "y": y, "weight": torch.ones(8)}]
    fit(model, guide, named, steps=2, num_particles=2, progress=False)
    fit(model, guide, (x, y, torch.ones(8)), steps=2, num_particles=2, progress=False)


def test_batches_that_are_padded_to_different_lengths():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(5, 3), nn.Linear(3, 1)

        def forward(self, ids):
            return self.head(self.embedding(ids).mean(1))

    batches = [(torch.randint(5, (4, n)), torch.randn(4)) for n in (3, 5)]
    model = made(Pooled(), dataset_size=8)
    guide = AutoHypernetNormal(model, example=batches[0])
    fit(model, guide, batches, steps=2, num_particles=2, progress=False, validation=batches)
    summary = predict_summary(model, guide, batches, 5, targets=True)
    assert summary.log_prob.shape == (8,)


@pytest.mark.skipif(os.environ.get("BAYESHNET_CHECK_SHAPES") == "1", reason="annotations of scores name tensors")
def test_scores_take_arrays():
    draws, y = torch.randn(5, 8), torch.randn(8)
    assert crps(draws.numpy(), y.numpy()) == crps(draws, y)
    assert rmse(draws.mean(0), pd.Series(y.numpy())) == rmse(draws.mean(0), y)
    probs, labels = torch.rand(8, 3).softmax(-1), torch.randint(3, (8,))
    assert brier_score(probs, labels.numpy()) == brier_score(probs, labels)


def test_arrays_of_other_byte_orders_and_with_masks():
    x, y = data()
    model = made()
    assert torch.equal(model.as_inputs(x.astype(">f8")), model.as_inputs(x))
    assert torch.equal(model.as_targets(np.arange(3, dtype=">i4")), torch.arange(3, dtype=torch.int32))
    # Before, what lies under a mask was taken for data.
    masked = np.ma.masked_array(y, mask=np.arange(len(y)) == 2)
    assert model.as_targets(masked).isnan().nonzero().flatten().tolist() == [2]
    assert not model.as_targets(np.ma.masked_array(y, mask=False)).isnan().any()
    with pytest.raises(ArgumentError, match="has masked entries"):
        model.as_targets(np.ma.masked_array([1, 2], mask=[True, False]))
