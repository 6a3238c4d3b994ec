"""Networks as functions of a Pyro program: densities, enumeration, shapes, and what is refused."""

from __future__ import annotations

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceEnum_ELBO
from pyro.nn import PyroModule
from torch import nn
from torch.func import functional_call

import bayeshnet
from bayeshnet import AutoHypernet, fit, priors
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.models import DrawnModule, RandomModule
from tests.models.larger_programs import together_and_alone
from tests.models.network_programs import (
    PROGRAMS,
    ROWS,
    Recurrent,
    data,
    mlp,
    plain,
    the_sum_of_two_networks,
    without_plates,
)


@pytest.fixture(autouse=True)
def seed():
    pyro.set_rng_seed(0)


@pytest.mark.parametrize("make", PROGRAMS)
def test_many_draws_in_one_call_have_the_densities_of_each_alone(make):
    model, nesting = make()
    together, alone = together_and_alone(model, nesting=nesting)
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)
    assert len(set(alone.tolist())) > 1


# In one without plates the rows are an event, which is where these would be.
@pytest.mark.parametrize("make", [make for make in PROGRAMS if make is not without_plates])
def test_a_plate_further_left_than_it_has_to_be(make):
    """That of particles where ``max_plate_nesting`` is larger, or the program has other plates."""
    model, nesting = make()

    def wider():
        model()
        with pyro.plate("left", 2, dim=-1 - nesting):
            pyro.sample("beside", dist.Normal(torch.zeros(()).double(), 1.0))

    together, alone = together_and_alone(wider, nesting=nesting + 1)
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


def test_it_is_the_network_with_the_weights_at_its_sites():
    net, (x, _) = mlp(), data()
    before = [param.clone() for param in net.parameters()]
    f = RandomModule(net, name="risk")
    trace = poutine.trace(f).get_trace(x)
    names = ["risk.0.weight", "risk.0.bias", "risk.2.weight", "risk.2.bias"]
    assert f.latent_names == list(trace.stochastic_nodes) == names
    values = {name.removeprefix("risk."): trace.nodes[name]["value"] for name in names}
    torch.testing.assert_close(trace.nodes["_RETURN"]["value"], functional_call(net, values, (x,)))
    assert all(torch.equal(one, other) for one, other in zip(before, net.parameters(), strict=True))


def test_the_elbo_of_many_particles_is_the_mean_of_theirs():
    """A guide that is a point at three sets of weights in turn, or in one call."""
    model, _ = the_sum_of_two_networks()
    trace = poutine.trace(pyro.plate("p", 3, dim=-2)(model)).get_trace()
    draws = {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes if name[0] in "fg"}

    def guide():
        for name, value in draws.items():
            pyro.sample(name, dist.Delta(value, event_dim=value.dim() - 2))

    elbo = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    alone = []
    for i in range(3):
        values = {name: value[i, 0] for name, value in draws.items()}
        alone.append(-poutine.trace(poutine.condition(model, data=values)).get_trace().log_prob_sum())
    assert elbo.loss(model, guide) == pytest.approx(float(torch.stack(alone).mean().detach()), rel=1e-9)


# ---------------------------------------------------------------------- discrete latents beside a network


def point_guide(f, particles):
    """The priors of a network by name, weights ``[particles, 1, ...]``, and a guide that is a point at these."""
    prior = f.model.weight_priors()
    points = {name: fn.sample((particles, 1)) for name, fn in prior.items()}

    def guide():
        for name, value in points.items():
            point = value if particles > 1 else value[0, 0]
            pyro.sample(f"f.{name}", dist.Delta(point, event_dim=prior[name].event_dim))

    return prior, points, guide


@pytest.mark.parametrize("particles", [1, 3])
def test_outliers_are_summed_out_exactly(particles):
    f, (x, y) = RandomModule(mlp()), data()
    scales, odds = torch.tensor([0.5, 3.0]).double(), torch.tensor([0.75, 0.25]).double()

    def model():
        mean = f(x).squeeze(-1)
        with pyro.plate("data", ROWS):
            outlier = pyro.sample("outlier", dist.Categorical(odds), infer={"enumerate": "parallel"})
            pyro.sample("obs", dist.Normal(mean, scales[outlier]), obs=y)

    prior, points, guide = point_guide(f, particles)

    elbo = TraceEnum_ELBO(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=1)
    by_hand = []
    for i in range(particles):
        values = {name: value[i, 0] for name, value in points.items()}
        mean = functional_call(f.model.net.with_weights(list(values.values())), {}, (x,)).squeeze(-1)
        log_prob = dist.Normal(mean[:, None], scales).log_prob(y[:, None]) + odds.log()
        by_hand.append(log_prob.logsumexp(-1).sum() + sum(prior[name].log_prob(v) for name, v in values.items()))
    assert elbo.loss(model, guide) == pytest.approx(-float(torch.stack(by_hand).mean().detach()), rel=1e-9)


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("local", [True, False])
def test_enumerated_values_as_inputs(particles, local):
    """A regime of each row, or of all, that the network is given beside x."""
    f, (x, y) = RandomModule(mlp(3)), data()
    odds = torch.tensor([0.3, 0.7]).double()

    def model():
        plate = pyro.plate("data", ROWS)
        enumerate_it = {"infer": {"enumerate": "parallel"}}
        regime = None if local else pyro.sample("regime", dist.Bernoulli(odds[1]), **enumerate_it)
        g = f.sample()
        with plate:
            regime = pyro.sample("regime", dist.Bernoulli(odds[1]), **enumerate_it) if local else regime
            batch = torch.broadcast_shapes(regime.shape, (ROWS,))
            joined = torch.cat([x.expand(*batch, 2), regime.unsqueeze(-1).expand(*batch, 1)], -1)
            pyro.sample("obs", dist.Normal(g(joined).squeeze(-1), 0.5), obs=y)

    prior, points, guide = point_guide(f, particles)

    elbo = TraceEnum_ELBO(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=1)
    by_hand = []
    for i in range(particles):
        values = {name: value[i, 0] for name, value in points.items()}
        net = f.model.net.with_weights(list(values.values()))
        each = torch.stack(
            [
                dist.Normal(net(torch.cat([x, torch.full((ROWS, 1), r).double()], 1)).squeeze(-1), 0.5).log_prob(y)
                for r in (0.0, 1.0)
            ]
        )
        each = (each + odds.log()[:, None]).logsumexp(0).sum() if local else (each.sum(1) + odds.log()).logsumexp(0)
        by_hand.append(each + sum(prior[name].log_prob(v) for name, v in values.items()))
    assert elbo.loss(model, guide) == pytest.approx(-float(torch.stack(by_hand).mean().detach()), rel=1e-9)


# ---------------------------------------------------------------------- draws of Predictive and of chains


def test_draws_by_site_are_placed_left_of_all_plates():
    """Pyro gives matrices ``[S, *event]`` where its plate is at -3, and numbers ``[S, 1, 1]``."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.gain = nn.Linear(2, 1), nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.gain * self.linear(x)

    f = RandomModule(Scaled().double(), event_dim=1)
    x = torch.randn(3, ROWS, 2).double()

    def model():
        mean = pyro.deterministic("mean", f(x).squeeze(-1))
        with pyro.plate("groups", 3, dim=-2), pyro.plate("rows", ROWS, dim=-1):
            pyro.sample("obs", dist.Normal(mean, 1.0))

    draws = {f"f.{name}": fn.sample((5,)) for name, fn in f.model.weight_priors().items()}
    found = Predictive(model, draws, parallel=True)()["mean"]
    alone = Predictive(model, draws, parallel=False)()["mean"]
    expected = draws["f.gain"].view(5, 1, 1) * (
        torch.einsum("grd,sod->sgro", x, draws["f.linear.weight"]) + draws["f.linear.bias"].view(5, 1, 1, 1)
    ).squeeze(-1)
    torch.testing.assert_close(alone.reshape(5, 3, ROWS), expected)
    torch.testing.assert_close(found.reshape(5, 3, ROWS), expected)


def test_nuts_runs_on_it():
    model, _ = plain(lambda: nn.Linear(2, 1).double())
    mcmc = MCMC(NUTS(model), num_samples=5, warmup_steps=5, disable_progbar=True)
    mcmc.run()
    assert mcmc.get_samples()["f.weight"].shape == (5, 1, 2)


# ---------------------------------------------------------------------- what is learned, moved, copied, saved


def test_prior_scales_are_learned_by_fit_and_by_svi():
    for loop in ("fit", "svi"):
        f, g = (RandomModule(mlp(), priors.Normal(learn=True), name=name) for name in ("f", "g"))
        x, y = data()

        def model(x, y, f=f, g=g):
            mean = (f(x) + g(x)).squeeze(-1)
            with pyro.plate("data", ROWS):
                pyro.sample("obs", dist.Normal(mean, 0.3), obs=y)

        guide = AutoHypernet(model, example=(x, y), family="mean_field")
        if loop == "fit":
            fit(model, guide, (x, y), steps=3, progress=False)
        else:
            svi = SVI(
                model,
                guide,
                pyro.optim.Adam({"lr": 0.01}),
                Trace_ELBO(4, vectorize_particles=True, max_plate_nesting=1),
            )
            for _ in range(3):
                svi.step(x, y)
        for one in (f, g):
            assert all(not torch.equal(factor, torch.ones_like(factor)) for factor in one.scale_factors.values())


def test_learning_in_a_pyro_module_is_as_in_a_function():
    """Pyro's modules put the parameters of their parts into its store as well; they are learned once."""
    x, y = data()

    class Program(PyroModule):
        def __init__(self):
            super().__init__()
            self.f = RandomModule(mlp(), priors.Normal(learn=True))

        def forward(self, x, y):
            mean = self.f(x).squeeze(-1)
            with pyro.plate("data", ROWS):
                pyro.sample("obs", dist.Normal(mean, 0.3), obs=y)

    alone = RandomModule(mlp(), priors.Normal(learn=True))

    def function(x, y):
        mean = alone(x).squeeze(-1)
        with pyro.plate("data", ROWS):
            pyro.sample("obs", dist.Normal(mean, 0.3), obs=y)

    found = []
    program = Program()
    for model, f in ((function, alone), (program, program.f)):
        pyro.set_rng_seed(1)
        guide = AutoHypernet(model, example=(x, y), family="mean_field")
        elbo = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
        for _ in range(3):
            svi.step(x, y)
        found.append(f.scale_factors)
    assert all(torch.equal(value, found[1][name]) and value != 1.0 for name, value in found[0].items())


def test_copies_pickles_and_other_dtypes():
    f = RandomModule(mlp().float(), priors.Normal(0.5), name="risk", event_dim=1)
    x = torch.randn(5, 2)

    def run(module, x):
        pyro.set_rng_seed(3)
        return module(x)

    for twin in (copy.deepcopy(f), pickle.loads(pickle.dumps(f))):
        assert torch.equal(run(twin, x), run(f, x))
        assert repr(twin) == repr(f)
    assert run(f.double(), x.double()).dtype == torch.float64


def test_the_repr_says_what_it_is():
    f = RandomModule(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)), name="risk", event_dim=1)
    assert repr(f).splitlines() == [
        "RandomModule(",
        "  net: Sequential(Linear, ReLU, Linear), 21 weights in 4 tensors",
        "  prior: Normal(scale='fan_in')",
        "  sites: risk.*",
        "  event_dim=1",
        ")",
    ]


class Regression(nn.Module):
    """A program that is a module, so that it can be saved with its guide."""

    def __init__(self, scale=1.0, name="f"):
        super().__init__()
        self.f = RandomModule(nn.Linear(2, 1), priors.Normal(scale, learn=True), name=name)

    def forward(self, x, y=None):
        mean = self.f(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)


def test_a_program_is_saved_and_loaded_with_its_guide(tmp_path):
    x, y = torch.randn(9, 2), torch.randn(9)
    model = Regression()
    guide = AutoHypernet(model, example=(x, y))
    fit(model, guide, (x, y), steps=3, progress=False)
    bayeshnet.save(tmp_path / "run", guide=guide, model=model)
    again = Regression()
    guide_again = AutoHypernet(again, example=(x, y))
    bayeshnet.load(tmp_path / "run", guide=guide_again, model=again)
    assert all(torch.equal(again.f.scale_factors[name], value) for name, value in model.f.scale_factors.items())
    one, other = (_mean(*pair, x) for pair in ((model, guide), (again, guide_again)))
    assert torch.equal(one, other)
    other = Regression(scale=2.0)
    guide = AutoHypernet(other, example=(x, y))
    with pytest.raises(bayeshnet.errors.CheckpointError, match="scale"):
        bayeshnet.load(tmp_path / "run", guide=guide, model=other)


def _mean(model, guide, x):
    generator = torch.Generator().manual_seed(1)
    return bayeshnet.predict(model, guide, (x,), num_samples=10, sites=("obs",), generator=generator)["obs"].mean


# ---------------------------------------------------------------------- what is refused


def test_a_second_draw_in_one_run_is_refused():
    f, g = RandomModule(mlp()), RandomModule(mlp())
    x, _ = data()
    for twice in (lambda: f(x) + f(x + 1.0), lambda: f(x) + g(x)):
        with pytest.raises(UsageError, match=r"'f' are drawn twice .* g = f.sample\(\), g\(x1\), g\(x2\)"):
            poutine.trace(twice).get_trace()
        twice()  # outside of any inference both are draws


def test_other_errors_of_a_run_are_left_as_they_are():
    f = RandomModule(mlp())

    class Failing(poutine.messenger.Messenger):
        def _pyro_sample(self, msg):
            raise RuntimeError("of another kind")

    with Failing(), pytest.raises(RuntimeError, match="of another kind"):
        f.sample()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: RandomModule(mlp(), name=3), ArgumentTypeError, r"name: is an? int"),
        (lambda: RandomModule(mlp(), name=""), ArgumentError, "name: is empty"),
        (lambda: RandomModule(mlp(), event_dim="rows"), ArgumentTypeError, "event_dim: is 'rows'"),
        (lambda: RandomModule(mlp(), event_dim=True), ArgumentTypeError, "event_dim: is True"),
        (lambda: RandomModule(mlp(), event_dim=-1), ArgumentError, "event_dim: is -1"),
        (lambda: RandomModule(mlp(), event_dim=[]), ArgumentTypeError, r"event_dim: is \[\]"),
        (lambda: RandomModule(lambda x: x), ArgumentTypeError, "net: is a function"),
        (lambda: RandomModule(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))), ArgumentError, r"batch norm \['1'\]"),
        (lambda: RandomModule(mlp(), priors.Normal({"wight": 1.0})), ArgumentError, "wight"),
        (RandomModule(mlp()), ArgumentTypeError, r"x: f was called with \(\)"),
        (lambda: RandomModule(mlp())([1.0]), ArgumentTypeError, r"x: f was called with \(a list\)"),
        (lambda: RandomModule(mlp())(torch.ones(3, 2)), ArgumentTypeError, "x: has dtype torch.float32"),
        (lambda: RandomModule(mlp(), event_dim=2)(torch.ones(2).double()), ArgumentError, "one row has 2 dimensions"),
        (lambda: RandomModule(mlp(), event_dim=[1, 1])(torch.ones(2, 2).double()), ArgumentError, "has 2 numbers"),
        (lambda: RandomModule(mlp())(torch.ones(3, 5).double()), ArgumentError, "takes 2 columns"),
        (
            lambda: RandomModule(Recurrent())(torch.ones(3, 4, 2)),
            ArgumentError,
            r"event_dim: x has shape \[3, 4, 2\].*RandomModule\(..., event_dim=3\)",
        ),
    ],
)
def test_wrong_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_batch_norm_with_given_statistics_is_kept():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3).eval(), nn.Linear(3, 1)).double()
    net[1].running_mean.fill_(0.5)
    model, nesting = plain(lambda: net)
    torch.testing.assert_close(*together_and_alone(model, nesting=nesting), rtol=1e-9, atol=1e-9)


def test_there_is_no_likelihood():
    f = RandomModule(mlp())
    assert isinstance(f.sample(), DrawnModule)
    with pytest.raises(UsageError, match="has no likelihood"):
        f.model(*data())
