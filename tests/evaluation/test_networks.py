"""Sampled networks as plain modules, and one module of many to export."""

from __future__ import annotations

import copy
import pickle

import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

from bayeshnet import AutoHypernet, BayesianModel, freeze, likelihoods, predict, sample_networks
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.mnets.mlp import MLP

K = 3


def seeded(number=0):
    return torch.Generator().manual_seed(number)


class Tied(nn.Module):
    """A frozen embedding with padding, a recurrent layer, a tied output."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4, padding_idx=0)
        self.first, self.again = nn.Linear(4, 4), nn.Linear(4, 4)
        self.again.weight = self.first.weight
        self.rnn = nn.GRU(4, 4, batch_first=True)
        self.out = nn.Linear(4, 3)
        self.out.bias.requires_grad_(False)

    def forward(self, tokens):
        h, _ = self.rnn(self.again(torch.tanh(self.first(self.embed(tokens)))))
        return self.out(h[:, -1])


def problem(kind):
    torch.manual_seed(0)
    if kind == "tied":
        net, x, likelihood = Tied(), torch.randint(7, (6, 5)), likelihoods.Categorical()
    elif kind == "conv":
        net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2).eval(), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3))
        x, likelihood = torch.randn(6, 1, 5, 5), likelihoods.Categorical()
    elif kind == "main":
        net, x, likelihood = MLP(2, 1, (4,), verbose=False), torch.randn(6, 2), likelihoods.Normal(scale=0.1)
    elif kind == "two":
        net, x = nn.Linear(2, 3), torch.randn(6, 2)
        likelihood = likelihoods.Normal(scale=dist.Gamma(torch.tensor(6.0), torch.tensor(6.0)))
    else:
        net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        x, likelihood = torch.randn(6, 2), likelihoods.Normal(scale=0.1)
    model = BayesianModel(net, likelihood=likelihood, flat=kind == "flat")
    draws = {name: 0.3 + 0.1 * torch.randn(K, *shape) for name, shape in model.latent_shapes.items()}
    return net, model, draws, x


KINDS = ("plain", "flat", "two", "main", "tied", "conv")


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_networks_are_like_the_users(kind):
    net, model, draws, x = problem(kind)
    expected = predict(model, draws, x).draws
    networks = sample_networks(draws, K, model)
    for network, f in zip(networks, expected, strict=True):
        torch.testing.assert_close(network(x).reshape(f.shape), f)
        assert type(network) is type(net)
        assert [*network.state_dict()] == [*net.state_dict()] or {*network.state_dict()} == {*net.state_dict()}
        assert {n for n, p in network.named_parameters() if p.requires_grad} == {
            n for n, p in net.named_parameters() if p.requires_grad
        }
    copied = copy.deepcopy(net)
    copied.load_state_dict(networks[1].state_dict())
    torch.testing.assert_close(copied.eval()(x), networks[1](x))
    networks[0](x).sum().backward()  # parameters of their own
    with torch.no_grad():
        next(networks[0].parameters()).zero_()
    torch.testing.assert_close(sample_networks(draws, K, model)[0](x).reshape(expected[0].shape), expected[0])


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_posteriors_give_the_functions(kind):
    _, model, draws, x = problem(kind)
    pred = predict(model, draws, x)
    module = freeze(draws, K, model)
    torch.testing.assert_close(module(x), pred.functions)
    torch.testing.assert_close(freeze(draws, K, model, output="mean")(x), pred.mean)
    torch.testing.assert_close(freeze(draws, K, model, output="network")(x), pred.draws)
    other = freeze({name: value.flip(0) for name, value in draws.items()}, K, model)
    assert not torch.equal(other(x), module(x))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), module(x))
    assert torch.equal(pickle.loads(pickle.dumps(module))(x), module(x))
    assert not any(param.requires_grad for param in module.parameters())


# What torch.export says of any recurrent layer.
@pytest.mark.filterwarnings("ignore:The tensor attributes .*_flat_weights:UserWarning")
@pytest.mark.parametrize("kind", ["plain", "conv", "tied"])
def test_they_are_exported_for_any_number_of_rows(kind):
    _, model, draws, x = problem(kind)
    module = freeze(draws, K, model)
    rows = torch.export.Dim("rows", min=2, max=1000)
    exported = torch.export.export(module, (x,), dynamic_shapes=({0: rows},)).module()
    more = torch.cat([x, x.flip(0)])
    torch.testing.assert_close(exported(more), module(more))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning")
def test_onnx(tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    _, model, draws, x = problem("conv")
    module = freeze(draws, K, model)
    rows = torch.export.Dim("rows", min=2, max=1000)
    torch.onnx.export(module, (x,), dynamo=True, dynamic_shapes=({0: rows},), verbose=False).save(tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    more = torch.cat([x, x.flip(0)])
    (found,) = session.run(None, {session.get_inputs()[0].name: more.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), module(more), rtol=1e-5, atol=1e-5)


def test_of_guides():
    torch.manual_seed(0)
    x, y = torch.randn(8, 2), torch.randn(8)
    model = BayesianModel(nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.5))
    guide = AutoHypernet(model, example=(x, y))
    module = freeze(guide, 3, generator=seeded())
    torch.testing.assert_close(module(x), predict(model, guide, x, 3, generator=seeded()).functions)
    pyros = AutoNormal(model)
    pyros(x, y)
    assert freeze(pyros, 3, model)(x).shape == (3, 8)
    assert len(sample_networks(pyros, 2)) == 2
    with pytest.raises(ArgumentError, match="model: is not given, and the guide does not know it"):
        freeze(copy.deepcopy(guide), 3)
    with pytest.raises(ArgumentTypeError, match="model: is a function"):
        freeze(guide, 3, lambda x: None)


def test_errors():
    _, model, draws, x = problem("plain")
    with pytest.raises(ArgumentError, match="k: is 9, and there are 3 draws"):
        sample_networks(draws, 9, model)
    with pytest.raises(ArgumentError, match="output: is 'probs'; pass 'functions', 'mean' or 'network'"):
        freeze(draws, 2, model, output="probs")

    class Bare(dist.Normal):
        mean = property(lambda self: (_ for _ in ()).throw(NotImplementedError))

    class NoMean(likelihoods.Likelihood):
        def conditional(self, f, params, *, batch_dims):
            return Bare(f, 1.0).to_event(f.dim() - batch_dims)

    model = BayesianModel(nn.Linear(2, 1), likelihood=NoMean())
    draws = {name: torch.randn(2, *shape) for name, shape in model.latent_shapes.items()}
    with pytest.raises(UsageError, match="no formula for its mean; freeze with output='network'"):
        freeze(draws, 2, model)(x)
    context = MLP(2, 1, (4,), use_context_mod=True, verbose=False)
    model = BayesianModel(context, likelihood=likelihoods.Normal(scale=0.1))
    draws = {name: torch.randn(2, *shape) for name, shape in model.latent_shapes.items()}
    with pytest.raises(UsageError, match="net: MLP is a main network that cannot be given back its weights"):
        sample_networks(draws, 2, model)


def test_units_and_batch_norm_are_a_part_of_it():
    torch.manual_seed(0)
    x = 5.0 + 3.0 * torch.randn(40, 2)
    y = 1e5 * x[:, 0] + 1e5 * torch.randn(40)
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))
    model = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.1), standardize=(x, y))
    model.set_reference_rows(x)
    draws = {name: torch.randn(K, *shape) for name, shape in model.latent_shapes.items()}
    module = freeze(draws, K, model)
    torch.testing.assert_close(module(x[:5]), predict(model, draws, x[:5]).functions)
    exported = torch.export.export(module, (x[:5],)).module()
    torch.testing.assert_close(exported(x[5:10]), module(x[5:10]))
    twice = BayesianModel(Twice(), likelihood=likelihoods.Normal(scale=0.1))
    twice.set_reference_rows(x)
    draws = {name: torch.randn(K, *shape) for name, shape in twice.latent_shapes.items()}
    with pytest.raises(UsageError, match="each has to be called once"):
        freeze(draws, K, twice)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(2)

    def forward(self, x):
        return self.norm(self.layer(self.norm(x)))


@pytest.mark.parametrize(
    ("likelihood", "name"),
    [(likelihoods.Poisson(exposure=True), "exposure"), (likelihoods.Normal(scale=0.3, per_row=True), "noise")],
)
def test_what_needs_data_of_each_row_is_frozen_as_a_network_only(likelihood, name):
    x, y = torch.rand(8, 2), torch.ones(8)
    model = BayesianModel(nn.Linear(2, 1), likelihood=likelihood)
    guide = AutoHypernet(model, example={"x": x, "y": y, name: torch.ones(8)})
    for output in ("functions", "mean"):
        with pytest.raises(UsageError, match=f"^output: {type(likelihood).__name__} takes {name} of each row"):
            freeze(guide, 3, output=output)
    assert freeze(guide, 3, output="network")(x).shape == (3, 8)
