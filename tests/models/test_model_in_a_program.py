"""A BayesianModel inside of a larger Pyro program: many draws in one call have the densities of each alone."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.autoname import scope
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO
from torch import nn

from bayeshnet import AutoHypernet, BayesianModel, fit, likelihoods, priors
from bayeshnet.errors import ArgumentError
from tests.models.larger_programs import together_and_alone

ROWS = 6
ZERO = torch.zeros((), dtype=torch.float64)


@pytest.fixture(autouse=True)
def seed():
    pyro.set_rng_seed(0)


def network(inputs=2, outputs=1):
    return nn.Sequential(nn.Linear(inputs, 3), nn.Tanh(), nn.Linear(3, outputs)).double()


def unknown_noise():
    return likelihoods.Normal(scale=dist.Gamma(torch.tensor(3.0).double(), torch.tensor(4.0).double()))


def a_model(net=None, likelihood=None, **options):
    return BayesianModel(net or network(), likelihood=likelihood or unknown_noise(), **options)


def data(*row):
    return torch.randn(ROWS, *(row or (2,))).double(), torch.randn(ROWS).double()


def beside_other_latents():
    part, (x, y) = a_model(), data()

    def model():
        level = pyro.sample("level", dist.Normal(ZERO, 1.0))
        with pyro.plate("others", 4):
            pyro.sample("other", dist.Normal(level, 1.0), obs=torch.ones(4).double())
        part(x, y)

    return model, 1


def beside_nested_plates():
    part, (x, y) = a_model(), data()

    def model():
        with pyro.plate("columns", 2, dim=-2), pyro.plate("entries", 3, dim=-1):
            pyro.sample("entry", dist.Normal(ZERO, 1.0))
        part(x, y)

    return model, 2


def twice():
    one, other, (x, y) = a_model(), a_model(flat=True), data()

    def model():
        with scope(prefix="one"):
            one(x, y)
        with scope(prefix="other"):
            other(x, y + 1.0)

    return model, 1


def latent_inputs(**options):
    part, (_, y) = a_model(**options), data()

    def model():
        with pyro.plate("rows", ROWS):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        part(z, y)

    return model, 1


def inputs_that_depend_on_a_latent():
    part, (x, y) = a_model(standardize=(torch.randn(9, 2).double(), torch.randn(9).double())), data()

    def model():
        shift = pyro.sample("shift", dist.Normal(ZERO, 1.0))
        part(x + shift.unsqueeze(-1), y)

    return model, 1


def latent_sequences():
    """A network of one's own, of which nothing tells the dimensions of a row."""

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(2, 2, batch_first=True)

        def forward(self, x):
            return self.rnn(x)[0][:, -1, :1]

    part, (x, y) = a_model(Recurrent().double()), data(4, 2)

    def model():
        gain = pyro.sample("gain", dist.Normal(ZERO, 1.0))
        part(x * gain[..., None, None], y, event_dim=2)

    return model, 1


def several_outputs():
    part, (_, y) = a_model(network(outputs=2), likelihoods.Normal(scale=0.5)), (None, torch.randn(ROWS, 2).double())

    def model():
        with pyro.plate("rows", ROWS):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        part(z, y)

    return model, 1


def sequences_of_rows():
    """Linear layers on ``[B, T, d]`` give ``[B, T, 1]``: all data, no latents."""
    part, x, y = a_model(), torch.randn(ROWS, 4, 2).double(), torch.randn(ROWS, 4).double()

    def model():
        pyro.sample("beside", dist.Normal(ZERO, 1.0))
        part(x, y.unsqueeze(-1))

    return model, 1


PROGRAMS = [
    (beside_other_latents, 4),
    (beside_nested_plates, 4),
    (twice, 4),
    (latent_inputs, 4),
    (lambda: latent_inputs(flat=True), 4),
    (lambda: latent_inputs(likelihood=likelihoods.StudentT(df=4.0, scale=0.5)), 4),
    (latent_inputs, ROWS),
    (inputs_that_depend_on_a_latent, 4),
    (latent_sequences, 4),
    (several_outputs, 4),
    (several_outputs, 2),
    (sequences_of_rows, 4),
    (sequences_of_rows, ROWS),
]


@pytest.mark.parametrize(("make", "num"), PROGRAMS)
def test_many_draws_in_one_call_have_the_densities_of_each_alone(make, num):
    model, nesting = make()
    together, alone = together_and_alone(model, nesting=nesting, num=num)
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)
    assert len(set(alone.tolist())) == num


@pytest.mark.parametrize("particles", [1, 3])
def test_a_regime_of_each_row_is_summed_out_exactly(particles):
    """Enumerated inputs, with noise that has particles and is not enumerated."""
    part, (x, y) = a_model(network(3)), data()

    def model():
        rows = pyro.plate("rows", ROWS, dim=-1)
        with rows:
            regime = pyro.sample("regime", dist.Bernoulli(ZERO + 0.25), infer={"enumerate": "parallel"})
        batch = torch.broadcast_shapes(regime.shape, (ROWS,))
        joined = torch.cat([x.expand(*batch, 2), regime.unsqueeze(-1).expand(*batch, 1)], -1)
        part(joined, y, plate=rows)

    trace = poutine.trace(part).get_trace(torch.cat([x, x[:, :1]], 1), y)
    priors_of = {name: trace.nodes[name]["fn"] for name in trace.stochastic_nodes if name != "data"}
    points = {name: fn.sample((particles, 1)) for name, fn in priors_of.items()}

    def guide():
        for name, value in points.items():
            point = value if particles > 1 else value[0, 0]
            pyro.sample(name, dist.Delta(point, event_dim=priors_of[name].event_dim))

    elbo = TraceEnum_ELBO(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=1)
    by_hand = []
    for i in range(particles):
        draws = {name: value[i] for name, value in points.items()}
        each = []
        for regime, odds in ((0.0, 0.75), (1.0, 0.25)):
            _, fn = part.conditional(torch.cat([x, torch.full((ROWS, 1), regime).double()], 1), draws)
            each.append(fn.log_prob(y)[0] + torch.tensor(odds).double().log())
        prior = sum(priors_of[name].log_prob(value[0]) for name, value in draws.items())
        by_hand.append(torch.stack(each).logsumexp(0).sum() + prior)
    assert elbo.loss(model, guide) == pytest.approx(-float(torch.stack(by_hand).mean().detach()), rel=1e-9)


def test_fit_takes_all_particles_in_one_call(recwarn):
    """A warning, which is an error here, would say that draws are evaluated in turn."""
    model, _ = latent_inputs()
    guide = AutoHypernet(model, example=(), family="mean_field")
    history = fit(model, guide, (), steps=3, num_particles=4, progress=False)
    assert len(history) == 3
    assert not [warning for warning in recwarn if "in turn" in str(warning.message)]


def test_learned_scales_of_two_models_in_one_program():
    """Pyro keeps one of two parameters with the same name; within a scope they have two."""
    one, other = (
        a_model(prior=priors.Normal(learn=True), likelihood=likelihoods.Normal(scale=1.0, learn=True)) for _ in range(2)
    )
    x, y = data()

    def model(x, y):
        with scope(prefix="one"):
            one(x, y)
        with scope(prefix="other"):
            other(x, y)

    guide = AutoHypernet(model, example=(x, y), family="mean_field")
    elbo = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    for _ in range(2):
        svi.step(x, y)
    for part in (one, other):
        assert all(not torch.equal(factor, torch.ones_like(factor)) for factor in part.scale_factors.values())
        assert float(part.likelihood.log_scale.detach()) != 0.0


def test_draws_by_site_under_nested_plates():
    """Where the plate of ``Predictive`` is at -3, it gives matrices ``[S, *event]`` and numbers ``[S, 1, 1]``."""
    part, (x, _) = a_model(nn.Linear(2, 1).double(), likelihoods.Normal(scale=0.1)), data()

    def model():
        with pyro.plate("columns", 2, dim=-2), pyro.plate("entries", 3, dim=-1):
            pyro.sample("entry", dist.Normal(ZERO, 1.0))
        part(x)

    draws = {name: torch.randn(40, *shape).double() for name, shape in part.latent_shapes.items()}
    found = Predictive(model, draws, parallel=True)()["obs"]
    mean = torch.einsum("rd,sod->sr", x, draws["weight"]) + draws["bias"]
    assert found.shape == (40, 1, ROWS)
    assert float((found[:, 0] - mean).abs().max()) < 0.1 * 5.0  # of 240 normal variables, a chance of 1e-4


def test_latent_inputs_beside_batch_norm_are_refused():
    part, (x, y) = a_model(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double()), data()
    with pyro.plate("particles", 2, dim=-2), pytest.raises(ArgumentError, match=r"x: has shape \[2, 6, 2\].*LayerNorm"):
        part(x.expand(2, ROWS, 2), y, event_dim=1)


def test_data_of_other_shapes_are_still_refused():
    """Without plates or enumerated latents around, inputs have no dimensions but those of their rows."""
    with pytest.raises(ArgumentError, match=r"y: has shape \(6,\)"):
        a_model()(torch.randn(4, ROWS, 2).double(), torch.randn(ROWS).double())


def test_the_plate_of_the_rows_is_that_of_the_program():
    part, (x, y) = a_model(), data()

    def of_a_part():
        rows = pyro.plate("rows", 2 * ROWS, subsample=torch.arange(ROWS), dim=-1)
        with rows:
            pyro.sample("beside", dist.Normal(ZERO, 1.0))
        part(x, y, plate=rows)

    trace = poutine.trace(of_a_part).get_trace()
    assert "data" not in trace.nodes
    assert trace.nodes["obs"]["scale"] == 2.0
    torch.testing.assert_close(*together_and_alone(of_a_part, nesting=1), rtol=1e-9, atol=1e-9)
    with pytest.raises(TypeError, match="plate: is a str"):
        part(x, y, plate="rows")
    for wrong in (pyro.plate("rows", 3, dim=-1), pyro.plate("rows", ROWS, dim=-2)):
        with pytest.raises(ArgumentError, match="plate: 'rows' has . rows and the place"):
            part(x, y, plate=wrong)
