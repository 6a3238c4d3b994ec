"""Frozen parameters, padding rows and modules with rules of their own in Bayesian models: fitted, saved, predicted."""

from __future__ import annotations

import copy
import pickle
import types

import pyro
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import nn
from torch.nn.modules import module as modules

import bayeshnet as bh
from bayeshnet import likelihoods, priors
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.infer import AutoHypernetNormal, start_from
from bayeshnet.mnets import MLP
from bayeshnet.models import local_reparam
from tests.mnets.test_frozen_mainnet import mlp, network


def model_of(net, **options):
    return bh.BayesianModel(net, likelihood=likelihoods.Normal(scale=0.1), **options)


def data(num=30):
    x = torch.randn(num, 3)
    return x, torch.sin(x).sum(-1)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("make", [network, mlp])
def test_sites_and_predictions(make, flat):
    """Weights of 7 were drawn from the posterior, near 0."""
    net, (x, y) = make(), data()
    model = model_of(net, flat=flat)
    first = "0.weight"
    assert first not in model.latent_shapes
    assert sum(shape.numel() for shape in model.latent_shapes.values()) == 8
    assert f"frozen=['{first}'" in repr(model)
    guide = bh.AutoHypernet(model, example=(x, y), conditional=None)
    bh.fit(model, guide, (x, y), steps=3, progress=False)
    draws = guide.sample_posterior(20)
    f, _ = model.evaluate(x, draws)
    weights = draws["weights"] if flat else torch.cat([draws[n].flatten(1) for n in model.latent_shapes], 1)
    hidden = torch.tanh(7.0 * x.sum(-1, keepdim=True) + weights[:, None, :4])
    torch.testing.assert_close(f, (hidden * weights[:, None, 4:]).sum(-1, keepdim=True) - 3.0)
    assert bh.predict(model, guide, x, num_samples=10).mean.isfinite().all()
    start_from(guide, net)  # its frozen parameters are not asked for, and no error
    start_from(guide, dict(net.state_dict()) if make is network else net)


@pytest.mark.parametrize("make", [network, mlp])
def test_copies_and_checkpoints(make, tmp_path):
    x, y = data()
    model = model_of(make())
    guide = bh.AutoHypernet(model, example=(x, y), conditional=None)

    def mean(model):
        pyro.set_rng_seed(1)
        draws = guide.sample_posterior(5)
        return model.evaluate(x, draws)[0].detach()

    expected = mean(model)
    other = make()
    with torch.no_grad():
        for param in other.parameters():
            param.fill_(1.0)
    loaded = model_of(other)
    bh.save(tmp_path / "run", model=model)
    bh.load(tmp_path / "run", model=loaded)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert torch.equal(mean(twin), expected)
    assert model.to(torch.float64).net.state_dict().popitem()[1].dtype == torch.float64


def test_priors_by_name():
    prior = priors.Normal(scale={"0.weight": 2.0, "0.bias": 1.0, "2.weight": "fan_in"})
    with pytest.raises(ArgumentError, match=r"scale: has entries for \['0.weight'\].*Frozen \(requires_grad=False\)"):
        model_of(network(), prior=prior)
    model = model_of(network(), prior=priors.Normal(scale={"*.weight": "fan_in", "*": 1.0}, learn=True))
    assert model.weight_priors()["2.weight"].base_dist.scale.eq(0.5).all()
    assert list(model.scale_factors) == ["0.bias", "2.weight"]


def test_nothing_is_left():
    for net in (network(), mlp()):
        with pytest.raises(ArgumentError, match=r"all parameters of .* are frozen"):
            model_of(net.requires_grad_(False))


def test_dtype_is_that_of_what_is_drawn():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(3, 4, dtype=torch.float64).requires_grad_(False)
            self.head = nn.Linear(4, 1)

        def forward(self, x):
            return self.head(torch.tanh(self.body(x.double())).float())

    x, y = data()
    model = model_of(Mixed())
    guide = bh.AutoHypernet(model, example=(x, y))
    bh.fit(model, guide, (x, y), steps=2, progress=False)


def test_complex_parameters_are_refused():
    net = nn.Sequential(nn.Linear(3, 2, dtype=torch.complex64))
    with pytest.raises(
        ArgumentTypeError, match=r"net: its parameter '0.weight' has dtype torch.complex64.*view_as_complex"
    ):
        model_of(net)


def test_parameters_of_whole_numbers_are_constants():
    """They cannot require a gradient."""
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    net.register_parameter("table", nn.Parameter(torch.arange(4), requires_grad=False))
    model = model_of(net)
    assert "table" not in model.latent_shapes
    assert "table" in repr(model)
    assert torch.equal(dict(model.net.named_buffers())["module.table"], torch.arange(4))


# ---------------------------------------------------------------------- conditional layers


def test_conditional_layers_beside_frozen_ones():
    x, y = data()
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    net[0].requires_grad_(False)
    net[2].bias.requires_grad_(False)
    model = model_of(net)
    guide = bh.AutoHypernet(model, example=(x, y))
    assert "conditional=[4.weight]" in repr(guide)
    bh.fit(model, guide, (x, y), steps=5, progress=False)
    assert bh.predict(model, guide, x, num_samples=10).mean.isfinite().all()


@pytest.mark.parametrize("frozen", [("2.weight",), ("2.bias",), ("2.weight", "2.bias")])
def test_a_frozen_last_layer_is_not_conditional(frozen):
    x, y = data()
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    for name in frozen:
        net.get_parameter(name).requires_grad_(False)
    model = model_of(net)
    guide = bh.AutoHypernet(model, example=(x, y))
    assert f"conditional=None ({' and '.join(frozen)} of the last linear layer cannot be drawn: frozen)" in repr(guide)
    bh.fit(model, guide, (x, y), steps=2, progress=False)
    with pytest.raises(ArgumentError, match=r"conditional: 'last' is not possible here \(2\."):
        bh.AutoHypernet(model, example=(x, y), conditional="last")


def test_a_frozen_mlp_is_not_conditional():
    guide = bh.AutoHypernet(model_of(mlp()), example=data())
    assert "conditional=None (of a main network with frozen parameters, ['0.weight', '1.bias']" in repr(guide)


def with_hook(net):
    net[2].register_forward_hook(lambda module, args, out: out)


def with_forward(net):
    net[2].forward = types.MethodType(nn.Linear.forward, net[2])


@pytest.mark.parametrize("change", [with_hook, with_forward])
def test_a_changed_last_layer_is_not_conditional(change):
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    change(net)
    guide = bh.AutoHypernet(model_of(net), example=data())
    assert "conditional=None (the last linear layer, '2', has hooks or a forward of its own)" in repr(guide)


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.register_forward_hook(lambda module, args, out: out.square()),
        lambda net: setattr(net, "forward", types.MethodType(lambda self, x: self[2](self[1](self[0](x))) ** 2, net)),
        lambda net: nn.utils.parametrizations.weight_norm(net[2]),
    ],
    ids=["hook", "forward", "weight norm"],
)
def test_a_network_that_does_not_end_in_a_linear_layer(change):
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    x = torch.randn(30, 3)
    change(net)
    guide = bh.AutoHypernet(model_of(net), example=(x, x))
    assert "conditional=None" in repr(guide)


class TiedHead(nn.Module):
    """The last layer's weight is the table of the embedding."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.out = nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3)
        self.out.weight = self.embed.weight

    def forward(self, x):
        return self.out(self.norm(self.embed(x)))


class Shared(nn.Sequential):
    def __init__(self):
        layer = nn.Linear(3, 3)
        super().__init__(layer, nn.Tanh(), layer)


def tied_chain():
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    net[2].weight = net[0].weight
    return net


@pytest.mark.parametrize("make", [TiedHead, tied_chain, lambda: nn.Sequential(*Shared())])
def test_a_tied_last_layer_is_not_conditional(make):
    """It was taken for the first layer, with the targets of the last."""
    x = torch.randn(30, 3)
    guide = bh.AutoHypernet(model_of(make()), example=(x, x))
    assert "is used at several places of the network (tied))" in repr(guide)


# ---------------------------------------------------------------------- what fit and predict give back


TOKENS = torch.randint(0, 6, (20, 4), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "options",
    [{"max_norm": 1.0}, {"sparse": True}, {"padding_idx": 0}, {"max_norm": 1.0, "padding_idx": 0, "sparse": True}],
    ids=str,
)
def test_embeddings_are_fitted(options):
    """``max_norm`` and ``sparse`` failed deep in PyTorch."""
    y = torch.randn(20)
    net = nn.Sequential(nn.Embedding(6, 2, **options), nn.Flatten(), nn.Linear(8, 1))
    model = model_of(net)
    assert ("fixed_rows={'0.weight': 0}" in repr(model)) == ("padding_idx" in options)
    guide = bh.AutoHypernet(model, example=(TOKENS, y))
    bh.fit(model, guide, (TOKENS, y), steps=3, progress=False)
    draws = guide.sample_posterior(5)
    before = {name: value.clone() for name, value in draws.items()}
    model.evaluate(TOKENS, draws)
    assert all(torch.equal(value, before[name]) for name, value in draws.items())
    assert bh.predict(model, guide, TOKENS, num_samples=5).mean.isfinite().all()


def test_padding_moves_no_prediction():
    net = nn.Sequential(nn.Embedding(6, 2, padding_idx=0), nn.Flatten(), nn.Linear(8, 1))
    model, draws = model_of(net), {"0.weight": torch.randn(9, 6, 2), "2.weight": torch.randn(9, 1, 8)}
    draws["2.bias"] = torch.randn(9, 1)
    f, _ = model.evaluate(TOKENS, draws)
    draws["0.weight"] = draws["0.weight"].clone()
    draws["0.weight"][:, 0] += 30.0
    assert torch.equal(model.evaluate(TOKENS, draws)[0], f)


@pytest.mark.parametrize("first", [nn.ReLU(inplace=True), nn.Hardtanh(inplace=True)])
def test_inputs_of_models_are_left_alone(first):
    x, y = data()
    before = x.clone()
    model = model_of(nn.Sequential(nn.Flatten(), first, nn.Linear(3, 1)))
    model(x)
    guide = bh.AutoHypernet(model, example=(x, y))
    bh.fit(model, guide, (x, y), steps=3, progress=False)
    bh.predict(model, guide, x, num_samples=5)
    assert torch.equal(x, before)


@pytest.mark.parametrize("view", [local_reparam.local_reparameterisation, local_reparam.flipout])
@pytest.mark.parametrize("kind", ["hook", "forward", "global hook", "frozen"])
def test_noise_for_each_row_follows_the_network(kind, view):
    """With scales near 0 the outputs are those of the means, whatever was put on the layer."""
    net = MLP(3, 1, (), verbose=False) if kind == "global hook" else nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    if kind == "hook":
        net[0].register_forward_hook(lambda module, args, out: 2.0 * out)
    if kind == "forward":
        net[0].forward = types.MethodType(lambda self, x: 2.0 * nn.Linear.forward(self, x), net[0])
    if kind == "frozen":
        net[0].requires_grad_(False)
    x, y = data()
    model = model_of(net)
    guide = AutoHypernetNormal(model, example=(x, y), init_scale=1e-6)
    handle = None
    if kind == "global hook":
        handle = modules.register_module_forward_hook(
            lambda module, args, out: 2.0 * out if isinstance(module, MLP) else None
        )
    try:
        losses = []
        for target in (model, view(model)):
            pyro.set_rng_seed(0)
            losses.append(TraceMeanField_ELBO(num_particles=2, vectorize_particles=True).loss(target, guide, x, y))
        assert losses[1] == pytest.approx(losses[0], rel=1e-3)
        if handle is not None:
            handle.remove()
            handle = None
            pyro.set_rng_seed(0)
            plain = TraceMeanField_ELBO(num_particles=2, vectorize_particles=True).loss(model, guide, x, y)
            assert plain != pytest.approx(losses[0], rel=1e-3)
    finally:
        if handle is not None:
            handle.remove()
