"""Inputs that are given by place where a model has seen them by name, and the other way round."""

from __future__ import annotations

import copy

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from bayeshnet import AutoHypernetNormal, BayesianModel, fit, likelihoods, load_posterior, predict, save
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.evaluation import prior_predictive

X, SCALE = 10.0 * torch.randn(20, 2, generator=torch.Generator().manual_seed(0)), torch.linspace(0.5, 2.0, 20)[:, None]
Y = 1000.0 + 50.0 * X[:, 0]
U, V = 0.1 * X, 0.1 * X[:, 0]  # of unit scale


class Scaled(nn.Module):
    """A network one of whose inputs has the name that the model's inputs have, with an output to be picked."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(2, 4), nn.Linear(4, 1)

    def forward(self, x, scale):
        return {"mean": self.head(torch.tanh(self.body(x))) * scale}


class Nested(nn.Module):
    """A network one of whose inputs is a dict, and another's name begins like the first."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 1)

    def forward(self, part, part_scale):
        return self.head(part["x"]) * part_scale


class One(nn.Module):
    """A network of one input."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 1)

    def forward(self, x: torch.Tensor):
        return self.head(x)


CASES = {
    "two": (Scaled, (X, SCALE), {"scale": SCALE, "x": X}, "mean"),
    "nested": (Nested, ({"x": X}, SCALE), {"part_scale": SCALE, "part": {"x": X}}, None),
    "one": (One, X, {"x": X}, None),
}


def built(net, output, standardize=None):
    torch.manual_seed(0)
    return BayesianModel(net, likelihood=likelihoods.Normal(scale=0.5), output=output, standardize=standardize)


@pytest.mark.parametrize("case", CASES)
def test_inputs_are_standardised_by_place_and_by_name(case, tmp_path):
    """Standardised by data of one form, the model predicts from both; as from data standardised by hand."""
    make, places, names, output = CASES[case]
    torch.manual_seed(0)
    net = make()
    found = []
    for seen in (places, names):
        model = built(net, output, standardize=(seen, Y))
        draws = {name: torch.zeros(3, *shape) + 0.1 for name, shape in model.latent_shapes.items()}
        restored = copy.deepcopy(model)
        found += [predict(m, draws, form).functions for m in (model, restored) for form in (places, names)]
        guide = AutoHypernetNormal(model, example=(places, Y))
        save(tmp_path / "file", model=model, guide=guide)
        loaded = load_posterior(tmp_path / "file", make())
        found += [predict(loaded.model, draws, form).functions for form in (places, names)]
    x, scale = ((part - part.mean(0)) / part.std(0, unbiased=False) for part in (X, SCALE))
    net.load_state_dict({name: torch.full_like(value, 0.1) for name, value in net.state_dict().items()})
    plain = {
        "two": lambda: net(x, scale)["mean"],
        "nested": lambda: net({"x": x}, scale),
        "one": lambda: net(x),
    }[case]()
    expected = plain.detach().squeeze(-1) * Y.std(unbiased=False) + Y.mean()
    torch.testing.assert_close(found[0], expected.expand(3, 20), rtol=1e-5, atol=1e-2)
    for other in found[1:]:
        assert torch.equal(other, found[0])


def test_a_call_by_name_of_a_network_with_an_input_x():
    """The model's argument x is the network's then: in plain Pyro, and in a summary."""
    model = built(Scaled(), "mean")
    guide = AutoHypernetNormal(model, example=((U, SCALE), V))
    elbo = Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    losses = []
    for args, kwargs in (
        (((U, SCALE), V), {}),
        ((), {"x": U, "scale": SCALE, "y": V}),
        ((U,), {"scale": SCALE, "y": V}),
        ((), {"x": {"x": U, "scale": SCALE}, "y": V}),
    ):
        pyro.set_rng_seed(0)
        losses.append(SVI(model, guide, pyro.optim.Adam({"lr": 0.0}), elbo).step(*args, **kwargs))
    assert losses == losses[:1] * 4
    by_name = guide.summary({"x": U, "scale": SCALE, "y": V}, measure=False)
    for data in (((U, SCALE), V), (U, SCALE, V), [(U, SCALE, V)]):
        summary = guide.summary(data, measure=False)
        assert (summary.rows, summary.memory_estimated) == (20, by_name.memory_estimated)
    assert by_name.rows == 20
    with pytest.raises(ArgumentError, match="given twice"):
        model((U, SCALE), V, scale=SCALE)


def test_a_call_by_name_of_other_inputs():
    """With targets and weights of the rows by name; and without targets, which are then drawn."""
    model = BayesianModel(nn.Bilinear(2, 1, 1), likelihood=likelihoods.Normal(scale=0.5))
    guide = AutoHypernetNormal(model, example=((U, SCALE), V))
    elbo = Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    losses = []
    for args, kwargs in (
        (((U, SCALE), V, SCALE[:, 0]), {}),
        ((), {"input1": U, "input2": SCALE, "y": V, "weight": SCALE[:, 0]}),
    ):
        pyro.set_rng_seed(0)
        losses.append(elbo.differentiable_loss(model, guide, *args, **kwargs).item())
    assert losses[0] == losses[1]
    pyro.set_rng_seed(0)
    drawn = model(input2=SCALE, input1=U)
    pyro.set_rng_seed(0)
    assert torch.equal(drawn, model((U, SCALE)))


def test_one_of_several_inputs_is_refused():
    """The targets would be taken for the second one."""
    model = built(Scaled(), "mean")
    guide = AutoHypernetNormal(model, example=((U, SCALE), V))
    with pytest.raises(ArgumentError, match=r"x: is one input, and forward requires 2, \['x', 'scale'\]"):
        fit(model, guide, {"x": U, "y": V}, steps=2, progress=False)
    optional = BayesianModel(
        nn.GRU(2, 1, batch_first=True), likelihood=likelihoods.Normal(scale=0.5), inputs=2, output=0
    )
    assert optional.as_arguments((), {"x": U[:, None], "y": V})[1].keys() == {"x", "y"}


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (X, r"x: is one tensor, .* Scaled.forward takes \(x, scale\) .*'scale'"),
        ((X,), r"x: is one tensor, .* Scaled.forward takes"),
        ({"x": X}, r"keys \['x'\], .* Scaled.forward takes"),
        ({"x": X, "scales": SCALE}, r"keys \['x', 'scales'\], .* Scaled.forward takes"),
        ((X, SCALE, SCALE), r"a tuple of 3, .* Scaled.forward takes"),
        ((X[:, :1], SCALE), r"the network's Linear 'body' takes 2 columns, not 1"),
    ],
)
def test_messages_name_the_network_behind_an_output(x, match):
    model = built(Scaled(), "mean")
    with pytest.raises((ArgumentError, ArgumentTypeError), match=match):
        prior_predictive(model, x, 3)
