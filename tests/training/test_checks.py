"""What is looked at before the first step: options, whether model and guide belong together, vectorisation."""

from __future__ import annotations

import contextlib
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import ReweightedWakeSleep, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

from bayeshnet import AutoHypernet, AutoHypernetDelta, AutoHypernetNormal, fit
from bayeshnet.errors import ArgumentError, ArgumentTypeError, VectorisationWarning
from bayeshnet.infer import FlatElbo
from tests.problems import Y, bnn, normal_model


def mixture(z):
    """Runs with a batch of draws, and mixes them up."""
    w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
    mu = pyro.sample("mu", dist.Normal(torch.zeros(3), 3.0).to_event(1))
    with pyro.plate("d", len(z)):
        components = dist.Normal(mu.unsqueeze(-2), 1.0)
        pyro.sample("o", dist.MixtureSameFamily(dist.Categorical(w.unsqueeze(-2)), components), obs=z)


def mixture_with_a_plate(z):
    """Fails with a batch of draws."""
    w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("k", 3):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("d", len(z)):
        pyro.sample("o", dist.MixtureSameFamily(dist.Categorical(w), dist.Normal(mu, 1.0)), obs=z)


def subsampled(z):
    """Takes rows at random, and mixes draws up or not."""
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("d", len(z), subsample_size=2) as rows:
        pyro.sample("o", dist.Normal(mu, 1.0), obs=z[rows])


def subsampled_and_mixed_up(z):
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("d", len(z), subsample_size=2) as rows:
        pyro.sample("o", dist.Normal(mu.mean(), 1.0), obs=z[rows])


def random_rows(z):
    """Takes rows at random, past Pyro."""
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    rows = torch.randperm(len(z))[:2]
    with pyro.plate("d", 2), poutine.scale(scale=len(z) / 2):
        pyro.sample("o", dist.Normal(mu, 1.0), obs=z[rows])


Z = torch.tensor([-3.0, -2.0, 0.5, 1.0, 1.5, 40.0])


WRONG = [
    (mixture, "UsageError: .*the log density of site 'o' has shape"),
    (mixture_with_a_plate, "ValueError: Shape mismatch inside plate"),
    (subsampled_and_mixed_up, "the log density of a draw is .* among others and .* alone"),
]


@pytest.mark.parametrize(
    ("guide", "model", "match"),
    [
        *((guide, *wrong) for guide in (AutoHypernet, AutoHypernetNormal) for wrong in WRONG),
        *((AutoHypernetDelta, *wrong) for wrong in WRONG[:2]),  # the mean of equal draws, in the last one, is right
    ],
)
def test_a_model_that_is_wrong_when_vectorised_is_evaluated_in_turn(guide, model, match):
    losses = []
    for options in ({"num_particles": 4}, {"loss": Trace_ELBO(num_particles=4)}):
        pyro.set_rng_seed(0)
        made = guide(model, example=(Z,))
        message = rf"for 4 particles in one vectorised call \({match}"
        expected = contextlib.nullcontext() if "loss" in options else pytest.warns(VectorisationWarning, match=message)
        with expected:
            losses.append(fit(model, made, (Z,), steps=2, progress=False, **options).losses)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("model", [normal_model, subsampled, random_rows])
def test_the_trial_lets_other_models_pass_and_leaves_no_trace(model):
    """Nothing but the fit takes random numbers, and parameters of Pyro's store are made by it."""
    data = (Z,)

    def guide(z):
        loc = pyro.param("loc", lambda: torch.randn(()))
        pyro.sample("mu", dist.Normal(loc, 1.0))

    for make in (lambda: AutoHypernet(model, example=data), lambda: AutoNormal(model), lambda: guide):
        losses = []
        for loss in (None, Trace_ELBO(num_particles=16, vectorize_particles=True)):
            pyro.set_rng_seed(0)
            pyro.clear_param_store()
            losses.append(fit(model, make(), data, steps=3, loss=loss, progress=False).losses)
        assert losses[0] == losses[1]
    pyro.clear_param_store()


def test_dropout_is_no_trouble():
    net = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def model(z):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("d", len(z)):
            pyro.sample("o", dist.Normal(net(z.unsqueeze(-1)).squeeze(-1), scale), obs=z)

    fit(model, AutoHypernet(model, example=(Z,)), (Z,), steps=2, progress=False)


def test_types_of_options():
    guide = AutoHypernet(normal_model, example=(Y,))
    whole = "pass a whole number, 1 or more"
    for options, match in (
        ({"steps": 3.0}, f"^steps: is 3.0, a float; {whole}"),
        ({"num_particles": 1.5}, f"^num_particles: is 1.5, a float; {whole}"),
        ({"steps": True}, f"^steps: is True, a bool; {whole}"),
        ({"lr": "0.1"}, "^lr: is '0.1', a str; pass a positive number"),
        ({"clip_norm": "1"}, "^clip_norm: is '1', a str; pass a positive number"),
        ({"callbacks": lambda step, history: None}, r"^callbacks: is a function; pass a list.*callbacks=\[function\]"),
        ({"callbacks": None}, "^callbacks: is a NoneType; pass a list"),
        ({"callbacks": [3]}, r"^callbacks\[0\]: is an int; pass a function"),
        ({"stop": 100}, "^stop: is an int; pass a function from the losses .*, or None"),
        ({"lr_schedule": 0.1}, r"^lr_schedule: is a float; pass a function from the step .*, or None"),
        (
            {"optimizer": pyro.optim.Adam({"lr": 0.1})},
            "^optimizer: is a PyroOptim of pyro.optim; .*lambda groups",
        ),
        ({"optimizer": pyro.optim.Adam}, "^optimizer: is a function of pyro.optim; .*lambda groups"),
        (
            {"optimizer": pyro.optim.ClippedAdam},
            "^optimizer: is a function of pyro.optim; .*lambda groups",
        ),
        ({"optimizer": torch.optim.SGD([Y], lr=0.1)}, "^optimizer: is a SGD; .*lambda groups"),
        ({"optimizer": lambda groups: None}, "^optimizer: returned a NoneType"),
    ):
        with pytest.raises(ArgumentTypeError, match=match):
            fit(normal_model, guide, (Y,), progress=False, **options)
    fit(
        normal_model, AutoNormal(normal_model), (Y,), 2, optimizer=pyro.optim.clipped_adam.ClippedAdam, progress=False
    )  # one of torch's
    numpy = pytest.importorskip("numpy")
    fit(normal_model, guide, (Y,), numpy.int64(2), lr=numpy.float32(0.01), clip_norm=math.inf, progress=False)


def test_the_guide_of_another_model():
    (model, args), (flat, _) = bnn(), bnn(flat=True)
    other = AutoHypernet(lambda z: (normal_model(z), pyro.sample("v", dist.Normal(0.0, 1.0))), example=(Z,))
    for num_particles in (1, 16):
        with pytest.raises(ArgumentError, match=r"lacks the model's latents \['mu'\], and has sites \['w', 'nu'\]"):
            fit(
                normal_model,
                lambda y: [pyro.sample(name, dist.Normal(0.0, 1.0)) for name in ("w", "nu")],
                (Y,),
                num_particles=num_particles,
                progress=False,
            )
        with pytest.raises(ArgumentError, match=r"has sites \['v'\] that the model does not have"):
            fit(normal_model, other, (Z,), num_particles=num_particles, progress=False)
        with pytest.raises(ArgumentError, match=r"lacks the model's latents \['0.weight'"):
            fit(model, AutoHypernet(flat, example=args), args, num_particles=num_particles, progress=False)
    with pytest.raises(ArgumentError, match=r"Was it made for this model"):
        fit(model, AutoHypernetNormal(flat, example=args), args, loss=TraceMeanField_ELBO(), progress=False)


def test_the_wrong_order():
    model, args = bnn()
    guide = AutoHypernet(model, example=args)
    with pytest.raises(ArgumentTypeError, match=r"model: is a guide \(AutoHypernet\); pass the model first"):
        fit(guide, model, args, progress=False)
    with pytest.raises(ArgumentTypeError, match=r"guide: is a model \(BayesianModel\); pass the model first"):
        fit(lambda x, y: None, model, args, progress=False)
    with pytest.raises(ArgumentTypeError, match="guide: is a NoneType; pass a Pyro guide"):
        fit(model, None, args, progress=False)


def test_the_trial_leaves_buffers_alone():
    """Running statistics move in steps only."""

    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(1)

        def forward(self, y):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(y)):
                pyro.sample("obs", dist.Normal(mu, 1.0), obs=self.norm(y.unsqueeze(-1)).squeeze(-1))

    model, y = Normalised(), torch.randn(20)
    guide = AutoHypernet(model, example=(y,))
    counts = [int(model.norm.num_batches_tracked)]
    # With a loss that is given there is no trial.
    for options in ({"loss": Trace_ELBO(4, vectorize_particles=True)}, {"num_particles": 4}):
        fit(model, guide, (y,), steps=3, progress=False, **options)
        counts.append(int(model.norm.num_batches_tracked))
    assert counts[2] - counts[1] == counts[1] - counts[0]


def test_a_latent_may_be_left_to_the_prior():
    """As Pyro allows, with its warning; a guide of other latents altogether is refused."""

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        shift = pyro.sample("shift", dist.Normal(0.0, 0.1))
        with pyro.plate("data", len(y)):
            pyro.sample("obs", dist.Normal(mu + shift, 1.0), obs=y)

    y = torch.randn(20)
    guide = AutoHypernet(pyro.poutine.block(model, hide=["shift"]), example=(y,))
    with pytest.warns(UserWarning, match="Found vars in model but not guide"):
        history = fit(model, guide, (y,), steps=3, lr=torch.tensor(0.01), progress=False)
    assert len(history) == 3


# Before: a TypeError of float(), and AttributeErrors.
WRONG_FUNCTIONS = [
    ({"loss": ReweightedWakeSleep()}, ArgumentTypeError, "loss: is a ReweightedWakeSleep, which has two losses.*SVI"),
    ({"loss": Trace_ELBO}, ArgumentTypeError, r"loss: is the class Trace_ELBO; .*Trace_ELBO\(num_particles=16\)"),
    ({"loss": nn.MSELoss()}, ArgumentTypeError, "loss: is a MSELoss; pass an ELBO of Pyro"),
    ({"loss": 3}, ArgumentTypeError, "loss: is an int; pass an ELBO of Pyro"),
    ({"loss": 0}, ArgumentTypeError, "loss: is an int; pass an ELBO of Pyro"),
    ({"stop": FlatElbo}, ArgumentTypeError, "stop: is the class FlatElbo; pass a function from the losses"),
    ({"callbacks": [FlatElbo]}, ArgumentTypeError, r"callbacks\[0\]: is the class FlatElbo; pass a function"),
]


@pytest.mark.parametrize(("options", "error", "match"), WRONG_FUNCTIONS)
def test_losses_and_functions_that_are_none(options, error, match):
    guide = AutoHypernet(normal_model, example=(Y,))
    with pytest.raises(error, match=f"^{match}"):
        fit(normal_model, guide, (Y,), steps=4, progress=False, **options)
    assert all(bool(param.isfinite().all()) for param in guide.parameters())
