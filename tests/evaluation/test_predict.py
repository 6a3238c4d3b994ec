from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bayeshnet import AutoHypernet, BayesianModel, Prediction, likelihoods, predict
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.sites.quantiles import sample_quantiles
from tests.problems import bnn


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("batch_size", [None, 7])
def test_draws_are_the_networks_outputs(flat, batch_size):
    model, (x, y) = bnn(flat=flat, dtype=torch.float64)
    guide = AutoHypernet(model, example=(x, y))
    draws = guide.sample_posterior(4)
    pred = predict(model, draws, x, batch_size=batch_size)
    for s in range(4):
        if flat:
            w1, b1, w2, b2 = draws["weights"][s].split([12, 6, 6, 1])
            w1, w2 = w1.view(6, 2), w2.view(1, 6)
        else:
            w1, b1, w2, b2 = (draws[k][s] for k in ("0.weight", "0.bias", "2.weight", "2.bias"))
        f = (torch.tanh(x @ w1.T + b1) @ w2.T + b2).squeeze(1)
        torch.testing.assert_close(pred.draws[s], f)
        torch.testing.assert_close(
            pred.conditional.log_prob(y)[s], dist.Normal(f, draws["likelihood.scale"][s]).log_prob(y)
        )


def test_moments_and_intervals():
    torch.manual_seed(0)
    f = torch.randn(4000, 3) * torch.tensor([1.0, 2.0, 0.5])
    conditional = dist.Normal(f, torch.tensor([0.5, 0.0001, 1.0]))
    pred = Prediction(f, conditional.sample(), conditional)
    torch.testing.assert_close(pred.std.square(), pred.epistemic.square() + pred.aleatoric.square())
    torch.testing.assert_close(pred.aleatoric, torch.tensor([0.5, 0.0001, 1.0]))
    # Monte Carlo error of a standard deviation from 4000 draws: 1.1 %.
    torch.testing.assert_close(pred.epistemic, torch.tensor([1.0, 2.0, 0.5]), rtol=0.05, atol=0)
    low, high = pred.interval(0.9)
    torch.testing.assert_close(high - low, 2 * 1.645 * torch.tensor([1.25**0.5, 2.0, 1.25**0.5]), rtol=0.06, atol=0)
    low, high = pred.interval(0.5, kind="function")
    torch.testing.assert_close(high - low, 2 * 0.6745 * torch.tensor([1.0, 2.0, 0.5]), rtol=0.08, atol=0)
    y = torch.zeros(3)
    expected = torch.logsumexp(conditional.log_prob(y), 0) - math.log(4000)
    torch.testing.assert_close(pred.log_prob(y), expected)


def test_classification():
    torch.manual_seed(0)
    model = BayesianModel(nn.Linear(2, 3), likelihood=likelihoods.Categorical())
    x, y = torch.randn(10, 2), torch.randint(3, (10,))
    pred = predict(model, AutoHypernet(model, example=(x, y)), x, num_samples=200)
    assert pred.draws.shape == (200, 10, 3)
    assert pred.samples.shape == (200, 10)
    torch.testing.assert_close(pred.probs.sum(-1), torch.ones(10))
    torch.testing.assert_close(pred.mean, pred.probs)
    torch.testing.assert_close(pred.entropy, pred.epistemic + pred.aleatoric)
    torch.testing.assert_close(pred.log_prob(y), pred.probs.log()[torch.arange(10), y])
    for call in (lambda: pred.std, pred.interval):
        with pytest.raises(UsageError, match="probs|entropy"):
            call()


@pytest.mark.parametrize("make", [AutoNormal, AutoMultivariateNormal])
@pytest.mark.parametrize("parallel", [True, False])
def test_pyros_guides(make, parallel):
    model, (x, y) = bnn()
    guide = make(model)
    guide(x, y)
    assert predict(model, guide, x, num_samples=6, parallel=parallel).draws.shape == (6, 30)


@pytest.mark.slow
def test_draws_of_nuts():
    model, (x, y) = bnn()
    mcmc = MCMC(NUTS(model, jit_compile=False), 20, 20, disable_progbar=True)
    mcmc.run(x, y)
    assert predict(model, mcmc.get_samples(), x).draws.shape == (20, 30)


def test_evaluation_mode_is_used_and_restored():
    net = nn.Sequential(nn.Linear(2, 20), nn.Dropout(0.5), nn.Linear(20, 1))
    model = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.1)).train()
    x = torch.randn(5, 2)
    draws = {name: torch.rand(2, *shape) for name, shape in model.latent_shapes.items()}
    assert torch.equal(predict(model, draws, x).draws, predict(model, draws, x).draws)
    assert model.training


def test_several_outputs():
    model = BayesianModel(nn.Linear(2, 3), likelihood=likelihoods.Normal(scale=0.5))
    x, y = torch.randn(6, 2), torch.randn(6, 3)
    pred = predict(model, AutoHypernet(model, example=(x, y)), x, num_samples=9)
    assert pred.mean.shape == pred.std.shape == (6, 3)
    assert pred.log_prob(y).shape == (6,)


def test_reprs_say_shapes_and_ranges():
    f = torch.tensor([[0.0, 1.0, 1.0], [2.0, 1.0, 3.0]])
    regression = Prediction(f, f, dist.Normal(f, 0.1))
    assert repr(regression) == (
        "Prediction(2 draws at 3 inputs, draws=f32[2,3], mean=1..2, std=0.1..1, likelihood=Normal)"
    )
    logits = torch.zeros(1, 4, 2)
    classification = Prediction(logits, logits[..., 0], likelihoods.Categorical().conditional(logits, {}, batch_dims=2))
    assert repr(classification) == (
        "Prediction(1 draw at 4 inputs, draws=f32[1,4,2], probs=0.5, entropy=0.693, likelihood=Categorical)"
    )
    outputs = torch.zeros(2, 4, 3)
    with_event = Prediction(outputs, outputs, dist.StudentT(1.0, outputs, 1.0).to_event(1))
    assert repr(with_event).endswith("draws=f32[2,4,3], median=0, likelihood=StudentT)")

    class NoVariance(dist.Normal):
        variance = property(lambda self: (_ for _ in ()).throw(NotImplementedError))

    assert repr(Prediction(f, f, NoVariance(f, 1.0))).endswith("mean=1..2, std=0..1 of samples, likelihood=NoVariance)")


def test_quantiles_of_many_numbers():
    torch.manual_seed(0)
    samples = torch.randn(101, 7)
    levels = torch.tensor([0.0, 0.05, 0.5, 0.9, 1.0])
    torch.testing.assert_close(sample_quantiles(samples, levels), torch.quantile(samples, levels, dim=0))
    assert sample_quantiles(torch.randn(1000, 20_000), torch.tensor([0.5])).shape == (1, 20_000)


def test_errors():
    model, (x, y) = bnn()
    guide = AutoHypernet(model, example=(x, y))
    pred = predict(model, guide, x, num_samples=3)
    with pytest.raises(ArgumentTypeError, match="model: is a function.*pyro.infer.Predictive"):
        predict(lambda x: None, guide, x)
    with pytest.raises(ArgumentError, match="num_samples: is 0"):
        predict(model, guide, x, num_samples=0)
    with pytest.raises(ArgumentError, match="batch_size: is 0"):
        predict(model, guide, x, batch_size=0)
    with pytest.raises(ArgumentError, match="no draws of the model's sites"):
        predict(model, {"0.weight": torch.zeros(3, 6, 2)}, x)
    with pytest.raises(ArgumentError, match=r"y: has shape \(30, 1\)"):
        pred.log_prob(y.unsqueeze(1))
    with pytest.raises(ArgumentError, match="level: is 90"):
        pred.interval(90)
    with pytest.raises(ArgumentError, match="kind: is 'both'"):
        pred.interval(kind="both")
    with pytest.raises(UsageError, match="probs: is for classifications"):
        _ = pred.probs


def test_inputs_that_are_no_tensor():
    model, (x, y) = bnn()
    guide = AutoHypernet(model, example=(x, y))
    loader = DataLoader(TensorDataset(x, y), batch_size=8)
    for bad, match in (
        (x.tolist(), "x: is a list; pass a tensor"),
        (loader, "x: is a DataLoader; .*torch.cat"),
        (None, "x: is a NoneType; pass a tensor"),
        ((), "x: is a tuple; pass a tensor"),
        (([1.0],), "x: is a tuple that begins with a list; pass a tensor"),
        (x.numpy().astype(object), "x: is a ndarray of dtype object, which holds no numbers"),
    ):
        with pytest.raises(ArgumentTypeError, match=match):
            predict(model, guide, bad, num_samples=3)
    with pytest.raises(ArgumentError, match="x: is a single number"):
        predict(model, guide, torch.tensor(1.0), num_samples=3)
    for options, match in (
        ({"num_samples": 10.5}, "num_samples: is 10.5, a float; pass a whole number, 1 or more"),
        ({"batch_size": 2.5}, "batch_size: is 2.5, a float; pass a whole number, 1 or more, or None"),
    ):
        with pytest.raises(ArgumentTypeError, match=match):
            predict(model, guide, x, **options)
    with pytest.raises(ArgumentTypeError, match="num_samples: is 2.5, a float"):
        guide.sample_posterior(2.5)


def test_guides_and_draws_that_do_not_fit():
    model, (x, y) = bnn()
    draws = AutoHypernet(model, example=(x, y)).sample_posterior(4)
    assert predict(model, {k: v.unsqueeze(1) for k, v in draws.items()}, x).draws.shape == (4, 30)  # of Predictive

    def changed(change):
        return {k: change(v) if k == "0.weight" else v for k, v in draws.items()}

    for bad, match in (
        (changed(lambda v: v.mT), r"its draws of '0.weight' have shape \(4, 2, 6\); pass \[S, 6, 2\]"),
        (changed(lambda v: v[0]), r"its draws of '0.weight' have shape \(6, 2\); pass \[S, 6, 2\]"),
        (changed(lambda v: v[:0]), r"its draws of '0.weight' have shape \(0, 6, 2\)"),
        (changed(lambda v: v[:3]), "gives different numbers of draws, {'0.weight': 3, '0.bias': 4"),
        (
            {k: v.reshape(2, 2, *v.shape[1:]) for k, v in draws.items()},
            r"have shape \(2, 2, 6, 2\); pass \[S, 6, 2\].*get_samples\(\) without group_by_chain",
        ),
    ):
        with pytest.raises(ArgumentError, match=match):
            predict(model, bad, x)
    with pytest.raises(ArgumentTypeError, match="guide: gives a list for '0.weight'"):
        predict(model, changed(lambda v: v.tolist()), x)
    with pytest.raises(ArgumentTypeError, match="guide: is a NoneType; pass a fitted guide, or draws"):
        predict(model, None, x)
    with pytest.raises(ArgumentTypeError, match="guide: is a model"):
        predict(model, model, x)
    other = BayesianModel(nn.Sequential(nn.Linear(2, 7), nn.Tanh(), nn.Linear(7, 1)), likelihood=model.likelihood)
    for make in (lambda: AutoHypernet(other, example=(x, y)), lambda: AutoNormal(other)):
        guide = make()
        guide(x, y)
        match = r"its draws of '0.weight' have shape .*7, 2\); pass \[S, 6, 2\], S draws of a guide made for this model"
        with pytest.raises(ArgumentError, match=match):
            predict(model, guide, x, num_samples=3)
