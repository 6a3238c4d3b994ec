"""Features of a frozen trunk: the numbers are those of the whole network, and a model takes none of another trunk."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bayeshnet import MLP, AutoHypernet, BayesianModel, fit, likelihoods, load_posterior, predict, priors, save
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.models import Columns
from bayeshnet.models.features import Features

OPTIONS = {"likelihood": likelihoods.Normal(scale=0.1), "bayesian": "last_layer", "others": "frozen"}


class Block(nn.Module):
    """A network that is no sequence, with batch norm and dropout in its trunk."""

    def __init__(self, skip=False):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5))
        self.head, self.skip = nn.Linear(8, 1), skip

    def forward(self, x):
        f = self.head(self.body(x) + 1.0)
        return f + x[:, :1] if self.skip else f


def nested():
    return nn.Sequential(nn.Sequential(nn.Linear(2, 8), nn.ReLU()), nn.Sequential(nn.Tanh(), nn.Linear(8, 1)))


def block():
    return Block().eval()


def data(rows=30, dtype=torch.float64):
    x = torch.randn(rows, 2, dtype=dtype)
    return x, x[:, 0].sin() + 0.1 * torch.randn(rows, dtype=dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
@pytest.mark.parametrize("make", [nested, block])
def test_numbers_are_those_without_precompute(make, dtype, tolerance):
    torch.manual_seed(0)
    network, (x, y) = make().to(dtype), data(dtype=dtype)
    model = BayesianModel(network, standardize=(x, y), dataset_size=30, **OPTIONS)
    features = model.precompute(x, batch_size=7)
    found = []
    for given in (x, features):
        torch.manual_seed(1)
        guide = AutoHypernet(model, example=(given, y), family="mean_field", conditional=None)
        history = fit(model, guide, (given, y), 3, batch_size=10, progress=False)
        pred = predict(model, guide, given, num_samples=5)
        found.append((torch.tensor(history.losses, dtype=torch.float64), pred.mean))
    assert features.shape == (30, 8)
    torch.testing.assert_close(found[0][0], found[1][0], rtol=tolerance, atol=0)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=10 * tolerance)


def test_the_conditional_layer_takes_features():
    torch.manual_seed(2)
    model, (x, y) = BayesianModel(nested().double(), **OPTIONS), data()
    features = model.precompute(x)
    torch.manual_seed(3)
    guide = AutoHypernet(model, example=(features, y))
    assert "conditional=[1.1.weight]" in repr(guide)
    fit(model, guide, (features, y), 3, progress=False)
    torch.manual_seed(4)
    first = predict(model, guide, x, num_samples=5).mean
    torch.manual_seed(4)
    torch.testing.assert_close(predict(model, guide, features, num_samples=5).mean, first, rtol=0, atol=1e-10)


def test_rows_loaders_and_copies_are_features():
    model, (x, y) = BayesianModel(block().double(), **OPTIONS), data()
    features = model.precompute(x)
    assert "of the trunk before head" in repr(features)
    assert "dropout off: body.3" in repr(features)
    for made in (features[:3], features[torch.arange(5)], torch.cat([features, features]), features.to("cpu")):
        assert isinstance(made, Features)
    for made in (features + 0, features.sum(), features @ features.T, features > 0):
        assert type(made) is torch.Tensor
    for same in (copy.deepcopy(features), pickle.loads(pickle.dumps(features)), features.clone()):
        assert isinstance(same, Features)
        assert same.trunk == features.trunk
        assert torch.equal(same.plain(), features.plain())
    (one, _), *_ = DataLoader(TensorDataset(features, y), batch_size=4)
    assert isinstance(one, Features)
    loaded, targets = model.precompute(DataLoader(TensorDataset(x, y), batch_size=8))
    torch.testing.assert_close(loaded.plain(), features.plain(), rtol=0, atol=1e-12)
    assert torch.equal(targets, y)
    assert torch.equal(model.precompute(x.numpy()).plain(), features.plain())


class TwoInputs(nn.Module):
    """A network of two inputs, the trunk of which puts them together."""

    def __init__(self):
        super().__init__()
        self.trunk, self.head = nn.Bilinear(2, 1, 4), nn.Linear(4, 1)

    def forward(self, u, v):
        return self.head(self.trunk(u, v))


def test_every_form_of_inputs_gives_the_same_features():
    u, v, y = 5.0 * torch.randn(20, 2), torch.randn(20, 1), torch.randn(20)
    model = BayesianModel(TwoInputs(), standardize=((u, v), y), **OPTIONS)
    expected = model.precompute((u, v))
    scaled = [(part - part.mean(0)) / part.std(0, unbiased=False) for part in (u, v)]
    by_hand = model.net.module.trunk(*scaled).detach()
    torch.testing.assert_close(torch.as_tensor(expected.plain()), by_hand, rtol=1e-5, atol=1e-5)
    for form in ([u, v], {"v": v.numpy(), "u": u}):
        given = tuple(form) if isinstance(form, list) else form
        assert torch.equal(model.precompute(given, batch_size=7), expected)
    for batches in (
        [((u[:12], v[:12]), y[:12]), ((u[12:], v[12:]), y[12:])],
        [{"u": u, "v": v, "y": y}],
        [{"x": (u, v), "y": y}],
        DataLoader(TensorDataset(u, v, y), batch_size=7),
    ):
        features, targets = model.precompute(batches)
        assert torch.equal(features, expected)
        assert torch.equal(targets, y)
    assert torch.equal(model.precompute(DataLoader(TensorDataset(u, v), batch_size=7)), expected)
    with pytest.raises(ArgumentTypeError, match=r"batches have \['weight'\] of the rows"):
        model.precompute([(u, v, y, torch.ones(20))])


def test_features_of_a_frame():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"city": ["Bern", "Basel", "Chur"] * 5, "age": [20.0 + i for i in range(15)]})
    y = pd.Series(range(15), dtype=float)
    columns = Columns(frame)
    net = nn.Sequential(nn.Linear(columns.width, 4), nn.Tanh(), nn.Linear(4, 1))
    model = BayesianModel(net, columns=columns, standardize=(frame, y), **OPTIONS)
    features = model.precompute(frame[["age", "city"]], batch_size=4)
    assert torch.equal(features, model.precompute(model.as_inputs(frame)))
    draws = {name: torch.randn(3, *shape) for name, shape in model.latent_shapes.items()}
    whole, ours = (predict(model, draws, x).functions for x in (frame, features))
    torch.testing.assert_close(ours, whole, rtol=0, atol=1e-5)


def test_features_of_another_trunk_are_refused():
    x, y = data()
    torch.manual_seed(5)
    first = BayesianModel(nested().double(), **OPTIONS)
    second = BayesianModel(nested().double(), **OPTIONS)
    features = first.precompute(x)
    with pytest.raises(ArgumentError, match="is of another trunk than the model has now"):
        second(features, y)
    second.load_state_dict(first.state_dict())
    second(features, y)
    with torch.no_grad():
        second.net.module[0][0].weight.add_(1.0)
    with pytest.raises(ArgumentError, match="is of another trunk"):
        second(features, y)
    with pytest.raises(ArgumentError, match="are of different trunks"):
        torch.cat([features, second.precompute(x)])


def test_a_guide_of_features_is_loaded_without_data(tmp_path):
    torch.manual_seed(6)
    network, (x, y) = nested().double(), data()
    model = BayesianModel(network, **OPTIONS)
    features = model.precompute(x)
    guide = AutoHypernet(model, example=(features, y))
    save(tmp_path / "run", model=model, guide=guide)
    torch.manual_seed(7)
    expected = predict(model, guide, features, num_samples=5).mean
    loaded = load_posterior(tmp_path / "run", nested().double())
    torch.manual_seed(7)
    assert torch.equal(predict(*loaded, features, num_samples=5).mean, expected)


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (Block(skip=True).eval(), {}, "what follows 'head' in the network is more than it"),
        (Block(), {}, r"batch norm of \['module.body.1'\] follows the batch"),
        (nn.Linear(2, 1), {}, "no frozen trunk, since its first layer"),
        (nested(), {"others": "learned"}, "no frozen trunk, since its first layer"),
        (MLP(n_in=2, n_out=1, hidden_layers=(4,), verbose=False), {}, "MLP, a main network of this package"),
    ],
)
def test_where_there_is_no_trunk_it_says_why(network, options, message):
    model = BayesianModel(network, **{**OPTIONS, **options})
    with pytest.raises(UsageError, match=message):
        model.precompute(torch.randn(5, 2))


def test_the_modes_of_the_network_stay_and_no_random_numbers_are_drawn():
    model = BayesianModel(block(), **OPTIONS)
    model.train()
    before, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    model.precompute(torch.zeros(5, 2))
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(before, torch.get_rng_state())


def test_the_posterior_of_the_last_layer_is_bayesian_linear_regression():
    """The exact posterior of a linear layer on features, against draws of the conditional layer."""
    torch.manual_seed(8)
    x, y = data(20)
    network = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    model = BayesianModel(network, prior=priors.Normal(scale=1.0), **OPTIONS)
    features = model.precompute(x)
    guide = AutoHypernet(model, example=(features, y))  # an inducing point at every row
    fit(model, guide, (features, y), 300, lr=0.05, num_particles=8, progress=False)
    phi = torch.cat([features.plain(), torch.ones(20, 1, dtype=torch.float64)], 1)
    covariance = torch.linalg.inv(phi.T @ phi / 0.1**2 + torch.eye(4, dtype=torch.float64))
    mean = covariance @ phi.T @ y / 0.1**2
    draws = guide.sample_posterior(4000)
    w = torch.cat([draws["2.weight"].reshape(4000, 3), draws["2.bias"].reshape(4000, 1)], 1)
    sd = covariance.diagonal().sqrt()
    # Standard errors: sd / sqrt(4000) = 1.6 % of a mean, 1.1 % of a standard deviation; the fit adds a little.
    assert float(((w.mean(0) - mean) / sd).abs().max()) < 0.1
    assert float((w.std(0) / sd - 1.0).abs().max()) < 0.1


def test_every_form_of_inputs_has_the_features_of_its_numbers():
    """Before, a frame went in with its columns as they came, and views of arrays that run backwards failed."""
    torch.manual_seed(0)
    network, (x, y) = nested(), data(dtype=torch.float32)
    frame = pd.DataFrame(x.numpy(), columns=["a", "b"])
    model = BayesianModel(network, columns=Columns(frame), **OPTIONS)
    expected = model.precompute(x)
    for given in (frame, frame[["b", "a"]], x.numpy(), x.double().numpy(), x.numpy()[::-1][::-1]):
        assert torch.equal(model.precompute(given), expected)
    assert torch.equal(model.precompute(x.numpy()[::-1]), expected.flip(0))
    features, targets = model.precompute([(frame[["b", "a"]], y.numpy())])
    assert torch.equal(features, expected)
    assert torch.equal(targets, y)
    scaled = BayesianModel(network, standardize=(x.double() + 1e6, y), **OPTIONS)  # rounded to float32 after that
    large = x.double() + 1e6
    assert torch.equal(scaled.precompute(large.numpy()), scaled.precompute(large))
    with pytest.raises(ArgumentError, match="NaN or infinite"):
        model.precompute(np.full((3, 2), np.nan))


def test_what_is_joined_with_numbers_or_has_its_columns_in_another_order_are_no_features():
    model = BayesianModel(nested(), **OPTIONS)
    features = model.precompute(torch.randn(6, 2, dtype=torch.float32))
    back = torch.arange(7, -1, -1)
    for kept in (features[1:3, ...], features[back[-3:], :], features.index_select(0, back[-3:])):
        assert kept.trunk == features.trunk
    for other in (features[:, back], features[:, back.tolist()], features.index_select(1, back)):
        assert type(other) is torch.Tensor
    with pytest.raises(ArgumentError, match="joined with plain numbers"):
        torch.cat([features, torch.zeros(2, 8)])
