"""Guides that draw layers conditionally on the others."""

from __future__ import annotations

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import ClippedAdam
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bayeshnet import AutoHypernet, BayesianModel, fit, likelihoods, load, predict, priors, save
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.guides._building import unconditional
from bayeshnet.hnets import HMLP
from bayeshnet.mnets import MLP
from tests.problems import EFFECTS, ERRORS, bnn, eight_schools
from tests.scenarios import EXACT_FAMILIES, FAMILIES


def regression(net, outputs=1, *, rows=40, inputs=2, dtype=torch.float32, prior=None, **options):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, inputs, generator=generator, dtype=dtype)
    y = torch.stack([(x[:, 0] + i).sin() for i in range(outputs)], -1)
    y = y + 0.1 * torch.randn(y.shape, generator=generator, dtype=dtype)
    prior = prior or priors.Normal(scale="fan_in")
    model = BayesianModel(net.to(dtype), prior=prior, likelihood=likelihoods.Normal(scale=0.1), **options)
    return model, (x, y if outputs > 1 else y[:, 0])


def exact_posterior(x, y, scale, noise):
    """Mean and covariance of weight and bias of a Bayesian linear regression."""
    features = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1).double()
    precision = torch.diag(scale.double() ** -2) + features.T @ features / noise**2
    covariance = torch.linalg.inv(precision)
    return covariance @ features.T @ y.double() / noise**2, covariance


@pytest.mark.parametrize("num_inducing", [None, 12])
def test_linear_regression_is_exact(num_inducing):
    """KL of the guide to the exact posterior below 0.01 nats per dimension; with few points it has to be found."""
    model, (x, y) = regression(nn.Linear(2, 1))
    guide = AutoHypernet(model, example=(x, y), num_inducing=num_inducing)
    assert guide.family is None
    fit(model, guide, (x, y), steps=1500 if num_inducing else 300, lr=0.03, progress=False)
    scale = torch.tensor([1 / math.sqrt(2), 1 / math.sqrt(2), 1.0])
    exact = torch.distributions.MultivariateNormal(*exact_posterior(x, y, scale, 0.1))
    posterior = guide.get_posterior()
    draws = posterior.rsample((20_000,))
    gaps = posterior.log_prob(draws).detach().double() - exact.log_prob(draws.detach().double())
    assert float(gaps.mean()) < 0.01 * 3 + 4 * float(gaps.std()) / math.sqrt(20_000)
    assert float(gaps.mean()) > -4 * float(gaps.std()) / math.sqrt(20_000)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("conditional", ["last", "all", ["2", "4"]])
def test_draw_and_density_agree(family, conditional):
    """At values that were not sampled here the density is found again from the values alone."""
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    model, data = regression(net, 2, dtype=torch.float64)
    guide = AutoHypernet(model, example=data, family=FAMILIES[family], conditional=conditional, num_inducing=7)
    fit(model, guide, data, steps=5, num_particles=3, progress=False)
    posterior = guide.get_posterior().expand((3,))
    draws = posterior.rsample((4,))
    own = posterior.log_prob(draws)
    assert own.shape == (4, 3)
    torch.testing.assert_close(posterior.log_prob(draws.clone() + 0.0), own)
    if family in EXACT_FAMILIES or guide.family is None:
        fresh = guide.get_posterior()  # it has drawn nothing yet
        torch.testing.assert_close(fresh.log_prob(draws.reshape(12, -1)).reshape(4, 3), own, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("prior", "bias"),
    [
        (priors.Normal(scale=0.7, loc=0.3), True),
        (priors.Normal(scale={"2.weight": torch.rand(2, 4) + 0.5, "*": 1.0}), True),
        (priors.Normal(), False),
    ],
)
def test_any_gaussian_prior(prior, bias):
    """The density integrates what the prior says: with precisions 0 the layer is its prior."""
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2, bias=bias))
    model, data = regression(net, 2, dtype=torch.float64, prior=prior)
    guide = AutoHypernet(model, example=data, family="mean_field", num_inducing=6)
    with torch.no_grad():
        guide.inducing.points[0].log_precision.fill_(-60.0)
    posterior = guide.get_posterior()
    draws = posterior.rsample((3,))
    layer = [fn for name, fn in model.weight_priors().items() if name.startswith("2.")]
    parts = draws.split([fn.event_shape.numel() for fn in model.weight_priors().values()], -1)[2:]
    layout = posterior.layout
    family = guide.family.distribution(*(unconditional(t, layout) for t in (guide.loc, guide.scale)))
    expected = family.log_prob(draws[:, :12])
    for fn, part in zip(layer, parts, strict=True):
        expected = expected + fn.log_prob(part.reshape(3, *fn.event_shape))
    torch.testing.assert_close(posterior.log_prob(draws), expected)
    fit(model, guide, data, steps=3, progress=False)


def test_pseudo_targets_are_met():
    """With high precisions every drawn network passes through the pseudo-targets."""
    model, (x, y) = regression(MLP(2, 1, (30,), activation_fn=nn.Tanh()))
    guide = AutoHypernet(model, example=(x, y), num_inducing=8, family="mean_field")
    with torch.no_grad():
        guide.inducing.points[0].log_precision.fill_(math.log(1e10))
    points = guide.inducing.inputs.detach()
    out = predict(model, guide, points, num_samples=20)
    targets = guide.inducing.points[0].targets.detach().float().reshape(-1)
    torch.testing.assert_close(out.draws.reshape(20, -1), targets.expand(20, -1), rtol=0, atol=2e-3)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_elbos_agree_and_rise(family, flat):
    model, data = bnn(flat=flat)
    guide = AutoHypernet(model, example=data, family=FAMILIES[family])
    steps = 40 if family == "mixture of hypernetworks" else 200  # each takes many times as long
    history = fit(model, guide, data, steps=steps, num_particles=8, progress=False)
    assert sum(history.losses[-20:]) < sum(history.losses[:20])
    options = {"num_particles": 100, "vectorize_particles": True}
    with torch.no_grad():
        found = [
            torch.tensor([elbo.loss(model, guide, *data) for _ in range(20)])
            for elbo in (Trace_ELBO(**options), TraceMeanField_ELBO(**options))
        ]
    error = math.hypot(*(float(losses.std()) / math.sqrt(20) for losses in found))
    assert abs(float(found[0].mean() - found[1].mean())) < 5 * error
    assert Predictive(model, guide=guide, num_samples=4, parallel=True)(data[0])["obs"].shape == (4, 30)


class Convolutions(nn.Module):
    """A network that is no chain, and ends in a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.skip = nn.Conv2d(1, 3, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head((self.conv(x).tanh() * self.skip(x)).mean((2, 3)))


def test_classification_with_a_head():
    x = torch.randn(60, 1, 6, 6)
    y = (x.mean((1, 2, 3)) > 0).long()
    x = x + 2 * (y.float() - 0.5).reshape(-1, 1, 1, 1)
    model = BayesianModel(Convolutions(), likelihood=likelihoods.Categorical())
    guide = AutoHypernet(model, example=(x, y))
    assert "conditional=[head.weight]" in repr(guide)
    fit(model, guide, (x, y), steps=200, num_particles=8, progress=False)
    pred = predict(model, guide, x, num_samples=50)
    assert float((pred.probs.argmax(-1) == y).float().mean()) > 0.9


def test_what_is_chosen_is_said():
    model, data = bnn()
    assert "conditional=[2.weight], num_inducing=30" in repr(AutoHypernet(model, example=data))
    assert "conditional" not in repr(AutoHypernet(model, example=data, conditional=None))
    general = AutoHypernet(eight_schools, example=(ERRORS, EFFECTS))
    assert "conditional=None (the model is no BayesianModel)" in repr(general)
    laplace = BayesianModel(
        nn.Linear(2, 1),
        prior=lambda name, record, like: dist.Laplace(like, 1.0).expand(record.shape).to_event(len(record.shape)),
        likelihood=likelihoods.Normal(scale=0.1),
    )
    assert "(the layer's prior is not Gaussian with a known scale)" in repr(AutoHypernet(laplace, example=data))
    last_is_tanh = BayesianModel(nn.Sequential(nn.Linear(2, 1), nn.Tanh()), likelihood=likelihoods.Normal(scale=0.1))
    assert "(the network does not end in a linear layer)" in repr(AutoHypernet(last_is_tanh, example=data))


def test_an_own_hypernetwork_makes_all_weights_unless_asked():
    model, data = bnn()
    made = []

    def build(shapes):
        made.append(shapes)
        return HMLP(shapes, uncond_in_size=3, cond_in_size=0)

    assert AutoHypernet(model, example=data, hnet=build).inducing is None
    assert AutoHypernet(model, example=data, hnet=build, conditional="last").inducing is not None
    assert made == [[[6, 2], [6], [1, 6], [1], []], [[6, 2], [6], [1]]]


def test_the_points_come_from_the_data_of_fit():
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))
    model, (x, y) = regression(net, rows=200, dataset_size=200)
    guide = AutoHypernet(model, example=(x[:8], y[:8]))
    assert guide.inducing.num_inducing == 85
    assert guide.wants_rows == 85
    loader = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)
    fit(model, guide, loader, steps=1, lr=1e-9, progress=False)
    assert guide.wants_rows == 0
    rows = {tuple(row) for row in x.tolist()}
    points = [tuple(round(v, 5) for v in row) for row in guide.inducing.inputs.tolist()]
    assert len(set(points)) == 85
    assert set(points) <= {tuple(round(v, 5) for v in row) for row in rows}


@pytest.mark.parametrize("conditional", ["last", "all"])
def test_trained_points_are_not_placed_again(conditional, tmp_path):
    """Not by a second fit, nor after a load, even if there never were as many rows as points."""
    torch.manual_seed(0)
    model, data = regression(nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)), rows=30)
    options = {"conditional": conditional, "num_inducing": 50}
    guide = AutoHypernet(model, example=data, **options)
    assert guide.wants_rows == 50
    fit(model, guide, data, steps=300, progress=False)
    assert guide.wants_rows == 0
    before = guide.inducing.inputs.detach().clone()
    fit(model, guide, data, steps=1, lr=1e-9, progress=False)
    torch.testing.assert_close(guide.inducing.inputs.detach(), before)
    save(tmp_path / "run", model=model, guide=guide)
    other = AutoHypernet(model, example=data, **options)
    load(tmp_path / "run", model=model, guide=other)
    fit(model, other, data, steps=1, lr=1e-9, progress=False)
    torch.testing.assert_close(other.inducing.inputs.detach(), before)


def test_copies_checkpoints_and_dtypes(tmp_path):
    model, data = bnn(dtype=torch.float64)
    guide = AutoHypernet(model, example=data)
    fit(model, guide, data, steps=3, progress=False)
    save(tmp_path / "run", guide=guide)
    other = AutoHypernet(model, example=data)
    load(tmp_path / "run", guide=other)
    draws = []
    for each in (guide, other, copy.deepcopy(guide)):
        torch.manual_seed(0)
        draws.append(each.sample_posterior(3)["2.weight"])
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])
    assert draws[0].dtype == torch.float64
    assert guide.float().sample_posterior(2)["2.weight"].dtype == torch.float32


def test_fit_gives_a_copy_its_model_back():
    """It is placed, calibrated and learns the prior's scales like the original."""
    torch.manual_seed(0)
    model, (x, y) = regression(nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)), rows=200, dataset_size=200)
    guide = AutoHypernet(model, example=(x[:8], y[:8]))
    twin = copy.deepcopy(guide)
    with pytest.raises(UsageError, match=r"place_inducing: .* guide.attach\(model\) gives it one"):
        twin.place_inducing(x, y)
    for each in (guide, twin):
        torch.manual_seed(1)
        fit(model, each, (x, y), steps=100, progress=False)
    assert twin.original_model is model
    assert torch.equal(twin.tempering_exponent, guide.tempering_exponent)
    for name, value in guide.state_dict().items():
        torch.testing.assert_close(twin.state_dict()[name], value)


def test_inferred_noise_after_a_loop_of_ones_own():
    """Nobody has calibrated resampling then, so it must not tilt the noise: 2.6 for a precision of about 2 once.

    The guide's log-normal has a variational error of some percent; the mean of 4000 draws one of 0.5 %.
    """
    pyro.set_rng_seed(0)
    x, noise = torch.randn(30, 3), torch.randn(30)
    y = x @ torch.tensor([1.0, -0.5, 0.0]) + 0.7 * noise
    model = BayesianModel(nn.Linear(3, 1), priors.Normal(scale=1.0), likelihoods.Normal(precision=dist.Gamma(2.0, 0.1)))
    guide = AutoHypernet(model, example=(x, y))
    assert guide.num_proposals > 1
    optimizer = ClippedAdam({"lr": 0.02, "lrd": 0.05 ** (1 / 1200)})
    svi = SVI(model, guide, optimizer, Trace_ELBO(8, max_plate_nesting=1, vectorize_particles=True))
    for _ in range(1200):
        svi.step(x, y)
    features = torch.cat([x, torch.ones(30, 1)], 1).double()
    grid = torch.linspace(0.05, 10.0, 2000, dtype=torch.float64)
    covariance = features @ features.T + torch.eye(30, dtype=torch.float64) / grid.reshape(-1, 1, 1)
    zero = torch.zeros(30, dtype=torch.float64)
    log_p = torch.distributions.MultivariateNormal(zero, covariance).log_prob(y.double())
    weights = (log_p + torch.distributions.Gamma(2.0, 0.1).log_prob(grid)).softmax(0)
    exact = float((weights * grid).sum())
    found = float(guide.sample_posterior(4000)["likelihood.precision"].mean())
    assert found == pytest.approx(exact, rel=0.06)


def test_what_decays():
    """Of the default hypernetwork the output layer, and nothing else of the guide."""
    model, data = bnn()
    guide = AutoHypernet(model, example=data)
    found = [param for group in guide.param_groups(0.01) if "decay" in group for param in group["params"]]
    assert {id(param) for param in found} == {id(param) for param in list(guide.hnet.internal_params)[-3:]}
    fit(model, guide, data, steps=20, progress=False)
    assert all(bool(param.any()) for param in found)  # from 0: the data ask for some of it


def test_plain_svi():
    model, data = bnn()
    guide = AutoHypernet(model, example=data, conditional="all")
    from pyro.optim import Adam  # noqa: PLC0415

    svi = SVI(model, guide, Adam({"lr": 0.01}), Trace_ELBO(num_particles=4, vectorize_particles=True))
    before = guide.inducing.inputs.detach().clone()
    for _ in range(3):
        assert math.isfinite(svi.step(*data))
    assert not torch.equal(before, guide.inducing.inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conditional": ["1"]}, r"pass 'auto', 'last', 'all', None, or names of linear layers among \['0', '2'\]"),
        ({"conditional": ["0"]}, "the last layer has to be among the conditional ones"),
        ({"conditional": "first"}, "conditional: is 'first'; pass 'auto', 'last', 'all', None, or a list of names"),
        ({"conditional": True}, "conditional: is True; pass 'auto', 'last', 'all', None, or a list of names"),
        ({"conditional": []}, r"conditional: \[\] was given"),
        ({"num_inducing": 0}, "num_inducing: is 0; pass a whole number, 1 or more"),
        ({"num_inducing": 1.5}, "num_inducing: is 1.5, a float; pass a whole number, 1 or more"),
        ({"num_inducing": 5, "conditional": None}, "num_inducing: is 5, and no layer is conditional; leave it out"),
        ({"init_scale": "a"}, "init_scale: is 'a', a str; pass a positive number"),
        ({"family": "gauss"}, "family: is 'gauss'; pass one of"),
    ],
)
def test_errors(options, message):
    model, data = bnn()
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        AutoHypernet(model, example=data, **options)


def test_errors_of_what_is_not_there():
    with pytest.raises(ArgumentError, match="conditional: 'last' is not possible here .the model is no BayesianModel"):
        AutoHypernet(eight_schools, example=(ERRORS, EFFECTS), conditional="last")
    rows = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    sequences = BayesianModel(rows, likelihood=likelihoods.Normal(scale=0.1))
    assert "several outputs for a row of shape (4, 2)" in repr(
        AutoHypernet(sequences, example=(torch.randn(5, 4, 2), torch.randn(5, 4, 1)))
    )
    model, data = bnn()
    with pytest.raises(UsageError, match="hnet: the guide's family is MeanField"):
        _ = AutoHypernet(model, example=data, family="mean_field").hnet
    with pytest.raises(UsageError, match="place_inducing: the guide has no conditional layers"):
        AutoHypernet(model, example=data, conditional=None).place_inducing(*data)
