"""Copies, pickles and checkpoints of model and guide draw and predict what the original does.

Before, a copied guide had forgotten the prior scales that its model had learned: the test log-likelihood of
`test_copies_predict_to_the_bit` went from -0.361 to -0.374.
"""

from __future__ import annotations

import copy
import io
import pickle
import re

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from bayeshnet import AutoHypernet, BayesianModel, fit, importance_sample, likelihoods, load, predict, priors, save
from bayeshnet.errors import ArgumentTypeError


def problem(noise=0.3):
    torch.manual_seed(0)
    x = torch.randn(60, 4)
    y = torch.sin(x @ torch.tensor([2.0, -1.5, 0.0, 0.0])) + 0.1 * torch.randn(60)
    net = nn.Sequential(nn.Linear(4, 10), nn.Tanh(), nn.Linear(10, 1))
    model = BayesianModel(
        net, prior=priors.Normal(scale="fan_in", learn="inputs"), likelihood=likelihoods.Normal(scale=noise)
    )
    return model, AutoHypernet(model, example=(x, y)), (x, y)


def by_torch(objects):
    file = io.BytesIO()
    torch.save(objects, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "together": copy.deepcopy,
    "apart": lambda pair: (copy.deepcopy(pair[0]), copy.deepcopy(pair[1])),
    "guide": lambda pair: (pair[0], copy.deepcopy(pair[1])),
    "model": lambda pair: (copy.deepcopy(pair[0]), pair[1]),
    "pickle": lambda pair: pickle.loads(pickle.dumps(pair)),
    "pickled apart": lambda pair: tuple(pickle.loads(pickle.dumps(part)) for part in pair),
    "torch.save": by_torch,
    "copy of a copy": lambda pair: copy.deepcopy(pickle.loads(pickle.dumps(copy.deepcopy(pair)))),
}


def assert_same(pair, other, x) -> None:
    predictions = []
    for model, guide in (pair, other):
        torch.manual_seed(3)
        prediction = predict(model, guide, x, num_samples=40)
        predictions.append((prediction.draws, prediction.samples))
    for a, b in zip(*predictions, strict=True):
        assert torch.equal(a, b)
    drawn = []
    for _, guide in (pair, other):
        torch.manual_seed(3)
        drawn.append(guide.sample_posterior(40))
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])


@pytest.mark.parametrize("noise", [0.3, dist.Gamma(6.0, 6.0)], ids=["known", "inferred"])
def test_copies_predict_to_the_bit(noise):
    model, guide, data = problem(noise)
    fit(model, guide, data, steps=60, progress=False)
    assert min(float(factor.min()) for factor in model.scale_factors.values()) < 0.9  # they have been learned
    for copied in COPIES.values():
        assert_same((model, guide), copied((model, guide)), data[0])


@pytest.mark.parametrize("noise", [0.3, dist.Gamma(6.0, 6.0)], ids=["known", "inferred"])
def test_checkpoints_predict_to_the_bit(noise, tmp_path):
    model, guide, data = problem(noise)
    fit(model, guide, data, steps=60, progress=False)
    save(tmp_path / "run", model=model, guide=guide)
    other_model, other_guide, _ = problem(noise)
    load(tmp_path / "run", model=other_model, guide=other_guide)
    assert_same((model, guide), (other_model, other_guide), data[0])
    copied = copy.deepcopy(other_guide)
    assert_same((model, guide), (other_model, copied), data[0])
    # Files hold no more than before: what a copy has in place of its model is no part of them.
    assert "copied_prior_scale" not in guide.state_dict()


def test_predictions_go_by_the_model_that_is_given():
    """A copy of a model that has learned further predicts by what it has learned, whosever guide it is used with."""
    model, guide, data = problem()
    fit(model, guide, data, steps=60, progress=False)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.learned_scales.log_factor.add_(1.0)
    torch.manual_seed(1)
    first = predict(changed, guide, data[0], num_samples=30).draws
    torch.manual_seed(1)
    assert torch.equal(predict(changed, copy.deepcopy(guide), data[0], num_samples=30).draws, first)
    torch.manual_seed(1)
    assert not torch.equal(predict(model, guide, data[0], num_samples=30).draws, first)
    assert guide.original_model is model  # what is given to one call is not kept
    torch.manual_seed(1)
    weighted = importance_sample(changed, guide, data, num_samples=20)
    torch.manual_seed(1)
    assert torch.equal(importance_sample(changed, copy.deepcopy(guide), data, 20).log_weights, weighted.log_weights)


def test_training_goes_on_alike():
    model, guide, data = problem()
    fit(model, guide, data, steps=30, progress=False)
    other_model, other_guide = pickle.loads(pickle.dumps((model, guide)))
    for pair in ((model, guide), (other_model, other_guide)):
        torch.manual_seed(5)
        fit(*pair, data, steps=10, progress=False)
    assert other_guide.original_model is other_model
    assert_same((model, guide), (other_model, other_guide), data[0])


def test_a_copy_moves_to_another_dtype():
    model, guide, data = problem()
    fit(model, guide, data, steps=10, progress=False)
    copied = copy.deepcopy(guide).double()
    assert copied.copied_prior_scale.dtype == torch.float64
    assert copied.sample_posterior(3)["0.weight"].dtype == torch.float64


class Named(nn.Module):
    """A network whose output is a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(1, 2, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(8, 1))

    def forward(self, x):
        return {"mean": self.body(x)}


def with_points(output):
    """A network whose convolution is learned as points, before a conditional last layer."""
    torch.manual_seed(0)
    x = torch.randn(60, 1, 4)
    net = Named().body if output is None else Named()
    likelihood = likelihoods.Normal(scale=0.3)
    model = BayesianModel(net, likelihood=likelihood, bayesian="last_layer", output=output)
    return model, AutoHypernet(model, example=(x, x.sum((1, 2)).sin())), (x, x.sum((1, 2)).sin())


@pytest.mark.parametrize("output", [None, "mean"])
def test_features_follow_the_points_of_the_copied_model(output):
    """Before, a guide that was copied alone kept points of its own, which were trained apart from its model's."""
    model, guide, data = with_points(output)
    pairs = {name: copied((model, guide)) for name, copied in COPIES.items() if name not in {"model", "guide"}}
    found = []
    for pair in ((model, guide), *pairs.values()):
        torch.manual_seed(1)
        losses = fit(*pair, data, steps=8, lr=0.05, progress=False).losses
        torch.manual_seed(2)
        found.append((losses, predict(*pair, data[0], num_samples=20).mean))
        assert {id(p) for p in pair[1].inducing.head_body.parameters()} <= {id(p) for p in pair[0].parameters()}
    for losses, mean in found[1:]:
        assert losses == found[0][0]
        assert torch.equal(mean, found[0][1])


def test_predictions_go_by_the_points_of_the_model_that_is_given():
    model, guide, data = with_points(None)
    fit(model, guide, data, steps=8, progress=False)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for point in changed.net.learned_values().values():
            point.add_(0.3)
    attached = copy.deepcopy(guide)
    attached.attach(changed)
    found = []
    for one in (guide, copy.deepcopy(guide), attached):
        torch.manual_seed(1)
        found.append(predict(changed, one, data[0], num_samples=20).draws)
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[2])
    own = {id(param) for param in model.parameters()}
    assert {id(param) for param in guide.inducing.head_body.parameters()} <= own  # one call's points are not kept


def test_points_and_guide_are_converted_together():
    model, guide, (x, y) = with_points(None)
    apart = copy.deepcopy(model).double(), copy.deepcopy(guide)
    for pair in (apart, (apart[0], guide)):
        with pytest.raises(ArgumentTypeError, match=re.escape("convert both of them")):
            predict(*pair, x.double(), num_samples=3)
    with pytest.raises(ArgumentTypeError, match=re.escape("convert both of them")):
        fit(*apart, (x.double(), y.double()), steps=1, progress=False)
    apart[1].double()
    torch.manual_seed(1)
    found = predict(*apart, x.double(), num_samples=3).mean
    torch.manual_seed(1)
    torch.testing.assert_close(found, predict(model, guide, x, num_samples=3).mean.double(), atol=1e-4, rtol=1e-4)


def test_a_fit_with_copies_made_apart_is_resumed(tmp_path):
    model, guide, data = with_points(None)

    class Crash(Exception):
        pass

    def crash(step, history):
        if step == 4:
            raise Crash

    options = {"steps": 8, "checkpoint": tmp_path / "fit", "every": 2, "progress": False}
    torch.manual_seed(1)
    whole = COPIES["apart"]((model, guide))
    losses = fit(*whole, data, steps=8, progress=False).losses
    torch.manual_seed(1)
    with pytest.raises(Crash):
        fit(*COPIES["apart"]((model, guide)), data, callbacks=[crash], **options)
    again = COPIES["apart"]((model, guide))
    assert fit(*again, data, **options).losses == losses
    assert all(torch.equal(*both) for both in zip(whole[1].parameters(), again[1].parameters(), strict=True))
