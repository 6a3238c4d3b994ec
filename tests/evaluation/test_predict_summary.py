"""Predictions in bounded memory, against those that keep all draws."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bayeshnet import AutoHypernet, BayesianModel, likelihoods, predict, predict_summary
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.evaluation import _sources, _stream
from tests.problems import bnn

LEVELS = (0.05, 0.5, 0.95)


def seeded(number=0):
    return torch.Generator().manual_seed(number)


def problem(rows=300):
    """A fixed guide, and more rows than are drawn together."""
    model, (x, y) = bnn(dtype=torch.float64)
    guide = AutoNormal(model)
    guide(x, y)
    x = torch.randn(rows, 2, dtype=torch.float64, generator=seeded(1))
    return model, guide, x, x[:, 0].sin()


def same(summary, pred, y):
    for name in ("mean", "std", "epistemic", "aleatoric", "functions"):
        torch.testing.assert_close(getattr(summary, name), getattr(pred, name))
    torch.testing.assert_close(summary.quantiles, pred.quantile(LEVELS))
    torch.testing.assert_close(summary.log_prob, pred.log_prob(y))
    torch.testing.assert_close(torch.stack(summary.interval(0.9)), torch.stack(pred.interval(0.9)))


def test_it_is_the_prediction_whatever_the_parts(monkeypatch):
    model, guide, x, y = problem()
    pred = predict(model, guide, x, 250, generator=seeded())
    assert torch.equal(predict(model, guide, x, 250, generator=seeded(), batch_size=17).samples, pred.samples)
    options = {"targets": y, "functions": True, "generator": seeded()}
    same(predict_summary(model, guide, x, 250, **options), pred, y)
    # Rows and networks in parts: the weights are drawn again for each block.
    made = []
    drawn = _sources.draws_of
    monkeypatch.setattr(_sources, "draws_of", lambda *args: made.append(args[3]) or drawn(*args))
    options = {**options, "generator": seeded(), "memory_gb": 1.5e-4}
    same(predict_summary(model, guide, x, 250, **options, batch_size=100), pred, y)
    assert made.count(100) > 6
    assert {*made} == {100, 50}


def test_data_of_every_form():
    model, guide, x, y = problem(100)
    expected = predict_summary(model, guide, x, 30, targets=y, generator=seeded())
    loader = DataLoader(TensorDataset(x, y), batch_size=7)
    batches = [{"x": x[:60], "y": y[:60]}, {"x": x[60:], "y": y[60:]}]
    for data in (loader, batches, iter([(x[:3], y[:3]), (x[3:], y[3:])]), {"x": x, "y": y}):
        found = predict_summary(model, guide, data, 30, targets=True, generator=seeded())
        for name, part in expected.parts.items():
            torch.testing.assert_close(found.parts[name], part)
    for data, targets in ((x.float().numpy().astype(np.float64), y.numpy()), ((x,), y)):
        found = predict_summary(model, guide, data, 30, targets=torch.as_tensor(targets), generator=seeded())
        torch.testing.assert_close(found.mean, expected.mean, rtol=1e-5, atol=1e-6)
    ignored = predict_summary(model, guide, loader, 30, generator=seeded())
    torch.testing.assert_close(ignored.mean, expected.mean)
    with pytest.raises(UsageError, match="log_prob: was not asked for; pass targets="):
        _ = ignored.log_prob
    assert repr(ignored).startswith("PredictionSummary(30 draws at 100 inputs, mean=")


def test_generators_leave_the_global_one_alone():
    model, guide, x, y = problem(20)
    loader = DataLoader(TensorDataset(x, y), batch_size=7)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = predict_summary(model, guide, loader, 10, generator=seeded())
    second = predict(model, guide, x, 10, generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(first.mean, second.mean)
    assert not torch.equal(first.mean, predict_summary(model, guide, x, 10, generator=seeded(1)).mean)
    torch.manual_seed(3)
    third = predict_summary(model, guide, x, 10)
    torch.manual_seed(3)
    assert torch.equal(predict_summary(model, guide, x, 10).quantiles, third.quantiles)


def test_labels_and_several_outputs():
    torch.manual_seed(0)
    x = torch.randn(40, 2)
    model = BayesianModel(nn.Linear(2, 3), likelihood=likelihoods.Categorical())
    draws = {name: torch.randn(9, *shape) for name, shape in model.latent_shapes.items()}
    summary, pred = predict_summary(model, draws, x, targets=torch.zeros(40).long()), predict(model, draws, x)
    for name in ("probs", "mean", "entropy", "epistemic", "aleatoric", "mutual_information"):
        torch.testing.assert_close(getattr(summary, name), getattr(pred, name))
    torch.testing.assert_close(summary.log_prob, pred.probs[:, 0].log())
    with pytest.raises(UsageError, match="std: labels have none"):
        _ = summary.std
    with pytest.raises(ArgumentError, match="levels: labels have no order"):
        predict_summary(model, draws, x, levels=[0.5])
    assert "probs=" in repr(summary)
    model = BayesianModel(nn.Linear(2, 3), likelihood=likelihoods.Normal(scale=0.1))
    summary = predict_summary(model, draws, x, levels=())
    assert summary.mean.shape == (40, 3)
    with pytest.raises(UsageError, match="no levels were asked for"):
        _ = summary.quantiles


def test_a_network_that_is_not_a_chain():
    """Networks times rows are bounded where vmap would keep all activations."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 1)).double()
    model = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.1))
    draws = {name: torch.randn(20, *shape, dtype=torch.float64) for name, shape in model.latent_shapes.items()}
    x = torch.randn(23, 1, 8, dtype=torch.float64)
    for memory_gb in (0.5, 1e-6):
        found = predict_summary(model, draws, x, memory_gb=memory_gb)
        torch.testing.assert_close(found.mean, predict(model, draws, x).mean)


def test_progress_and_unknown_lengths(capsys):
    model, guide, x, _ = problem(30)
    predict_summary(model, guide, iter([x[:10], x[10:]]), 5, progress=True)
    assert "30row" in capsys.readouterr().err


def test_errors():
    model, guide, x, y = problem(10)
    loader = DataLoader(TensorDataset(x, y), batch_size=7)
    for data, options, error, match in (
        (3.0, {}, ArgumentTypeError, "data: is a float; pass inputs"),
        ([], {}, ArgumentError, "data: have no rows"),
        (x[:0], {}, ArgumentError, "data: have no rows"),
        ([["a"]], {}, ArgumentTypeError, "data: inputs are a str"),
        ({"y": y}, {}, ArgumentError, "pass inputs as 'x'"),
        (loader, {"targets": y}, ArgumentTypeError, "targets: is a tensor, and data are batches"),
        (x, {"targets": y[:3]}, ArgumentError, r"targets: have shape \(3,\) for 10 rows"),
        ([x], {"targets": True}, ArgumentTypeError, "targets: are a NoneType"),
        (x, {"memory_gb": 0}, ArgumentError, "memory_gb"),
        (x, {"generator": 3}, ArgumentTypeError, "generator: is an int; pass a torch.Generator"),
        (x, {"levels": [2.0]}, ArgumentError, "levels"),
        (x, {"progress": "yes"}, ArgumentTypeError, "progress"),
    ):
        with pytest.raises(error, match=match):
            predict_summary(model, guide, data, 5, **options)
    with pytest.raises(ArgumentTypeError, match="model: is a function.*sites"):
        predict_summary(lambda x: None, guide, x)
    with pytest.raises(ArgumentError, match=r"levels kept are \[0.05, 0.5, 0.95\]; pass levels=\(0.25, 0.75\)"):
        predict_summary(model, guide, x, 5).interval(0.5)


def test_one_guide_of_the_package():
    model, (x, y) = bnn()
    guide = AutoHypernet(model, example=(x, y))
    pred = predict(model, guide, x, 20, generator=seeded())
    torch.testing.assert_close(predict_summary(model, guide, x, 20, generator=seeded()).mean, pred.mean)


def test_a_student_with_two_degrees_of_freedom_has_quantiles():
    class Student(likelihoods.Likelihood):
        def conditional(self, f, params, *, batch_dims):
            return dist.StudentT(2.0, f, 1.0).to_event(f.dim() - batch_dims)

    model = BayesianModel(nn.Linear(2, 1), likelihood=Student())
    draws = {name: torch.randn(5, *shape) for name, shape in model.latent_shapes.items()}
    summary = predict_summary(model, draws, torch.randn(9, 2))
    assert summary.mean.shape == summary.interval()[0].shape == (9,)
    with pytest.raises(UsageError, match="std: is infinite or NaN.*StudentT"):
        _ = summary.std


def test_few_bytes_are_counted():
    with _stream._Written() as written:
        _ = torch.zeros(3, 4) + 1.0
    assert written.bytes == 2 * 48
