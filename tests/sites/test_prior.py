"""Centre and spread of the prior."""

from __future__ import annotations

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from bayeshnet import AutoHypernet, BayesianModel, likelihoods
from bayeshnet.models import priors
from bayeshnet.sites.latents import latent_sites
from bayeshnet.sites.prior import prior_start

X, Y = torch.linspace(-1.0, 1.0, 24).reshape(8, 3), torch.zeros(8)


class Counting(nn.Module):
    """A network that counts its calls."""

    def __init__(self, *extra):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), *extra, nn.Linear(4, 1))
        self.calls = []

    def forward(self, x):
        self.calls.append(1)
        return self.net(x)


def start_of(model, *, wrap=False, args=(X, Y)):
    """The start, the random numbers that come next, and how often the network ran."""
    torch.manual_seed(0)
    sites = latent_sites(poutine.trace(model).get_trace(*args))
    net = model.net.module
    net.calls.clear()
    program = functools.partial(model) if wrap else model  # a function is run as a whole
    prototype = torch.zeros(sum(site.numel for site in sites))
    start = prior_start(program, sites, prototype, args, {})
    return start, torch.rand(3), len(net.calls)


def model_of(*extra, likelihood=None, **kwargs):
    torch.manual_seed(1)
    return BayesianModel(
        Counting(*extra), likelihood=likelihood or likelihoods.Normal(scale=dist.Gamma(6.0, 6.0)), **kwargs
    )


def same(first, second):
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in ("loc", "scale", "gaussian"))


@pytest.mark.parametrize("kind", ["plain", "eval", "dropout", "batch norm", "learned"])
def test_the_network_is_left_out_where_that_changes_nothing(kind):
    def make():
        if kind == "learned":
            return model_of(prior=priors.Normal(scale=1.0, learn=True))
        model = model_of(
            *{"dropout": [nn.Dropout()], "eval": [nn.Dropout()], "batch norm": [nn.BatchNorm1d(4)]}.get(kind, [])
        )
        return model.eval() if kind == "eval" else model

    model, other = make(), make()
    start, stream, calls = start_of(model)
    expected, expected_stream, expected_calls = start_of(other, wrap=True)
    assert same(start, expected)
    assert torch.equal(stream, expected_stream)
    for value, wanted in zip(model.buffers(), other.buffers(), strict=True):
        assert torch.equal(value, wanted)
    assert expected_calls >= 48
    # Batch norm does not change its running statistics here, so that it is left out as well.
    assert calls == expected_calls if kind == "dropout" else calls <= 2


def test_a_model_with_a_program_of_its_own_is_run_as_a_whole():
    class Shifted(BayesianModel):
        def forward(self, x, y=None):
            shift = pyro.sample("shift", dist.Gamma(2.0, 1.0))
            return super().forward(x + shift, y)

    net = nn.Linear(3, 1)
    model = Shifted(net, likelihood=likelihoods.Normal(scale=0.5))
    sites = latent_sites(poutine.trace(model).get_trace(X, Y))
    start = prior_start(model, sites, torch.zeros(5), (X, Y), {})
    names = [site.name for site in sites]
    assert names == ["shift", "weight", "bias"]
    assert 0.0 < float(start.loc[0]) < 1.5  # the logarithm of about 1.7
    assert AutoHypernet(model, example=(X, Y), conditional=None).latent_dim == 5


def test_what_is_known_and_what_is_drawn():
    def model():
        scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
        pyro.sample("given", dist.Normal(0.0, scale))
        pyro.sample("w", dist.Normal(torch.tensor([1.0, 2.0]), 3.0).to_event(1))

    torch.manual_seed(0)
    sites = latent_sites(poutine.trace(model).get_trace())
    start = prior_start(model, sites, torch.zeros(4), (), {}, num_draws=4000)
    assert start.gaussian.tolist() == [False, False, True, True]
    assert start.loc[2:].tolist() == [1.0, 2.0]
    assert start.scale[2:].tolist() == [3.0, 3.0]
    low, middle, high = dist.Gamma(2.0, 1.0).sample((200_000,)).log().quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    assert float(start.loc[0]) == pytest.approx(middle, abs=0.06)  # 4 standard errors of a median of 4000
    assert float(start.scale[0]) == pytest.approx((high - low) / 1.349, abs=0.06)


def test_latents_that_are_alike_get_one_spread():
    """Intercepts of groups: the spread is that of the conditional prior, by the quantiles of what it depends on."""

    def model():
        mean, spread = pyro.sample("mean", dist.Normal(5.0, 2.0)), pyro.sample("spread", dist.HalfNormal(1.0))
        pyro.sample("apart", dist.Normal(torch.zeros(3), spread).to_event(1))
        pyro.sample("around", dist.Normal(mean.expand(2), spread).to_event(1))
        heavy = pyro.sample("heavy", dist.HalfCauchy(5.0))
        pyro.sample("tailed", dist.Normal(torch.zeros(2), heavy).to_event(1))

    torch.manual_seed(0)
    sites = latent_sites(poutine.trace(model).get_trace())
    start = prior_start(model, sites, torch.zeros(10), (), {}, num_draws=4000)
    assert not bool(start.gaussian[1:].any())
    apart, around, tailed = start.scale[2:5], start.scale[5:7], start.scale[8:]
    assert len(set(apart.tolist())) == len(set(around.tolist())) == len(set(tailed.tolist())) == 1
    upper = 1.1503  # the upper quartile of a half normal, whose density is .412 there: a standard error of .0166
    assert float(apart[0]) == pytest.approx(upper, abs=0.07)
    assert float(around[0]) == pytest.approx((upper**2 + 2.0**2) ** 0.5, abs=0.25)  # that of the quartile range: .05
    assert float(tailed[0]) == pytest.approx(5.0 * (1.0 + 2.0**0.5), abs=1.7)  # density .0186, a standard error of .37
    assert start.loc[2:5].tolist() == [0.0] * 3
    assert float(start.loc[5]) == pytest.approx(5.0, abs=0.16)


def test_an_improper_prior_starts_at_the_prototype():
    def model():
        return pyro.sample("z", dist.ImproperUniform(dist.constraints.positive, (), (2,)))

    value = torch.tensor([0.5, -0.5])
    with pytest.raises(NotImplementedError):
        poutine.trace(model).get_trace()
    guide = AutoHypernet(model, example=(), init_loc_fn=lambda site: value.exp())
    torch.testing.assert_close(guide._init_loc(), value)
    torch.testing.assert_close(guide.scale, torch.ones(2))


class ShiftedPriors(pyro.poutine.messenger.Messenger):
    """Puts another prior into the place of that of one parameter."""

    def _pyro_sample(self, msg):
        if msg["name"] == "net.0.weight":
            msg["fn"] = dist.Normal(torch.full((4, 3), 5.0), 0.1).to_event(2)


class Handled(BayesianModel):
    def __call__(self, *args):
        with ShiftedPriors():
            return super().__call__(*args)


def test_priors_that_a_handler_changes_are_the_handlers():
    model = Handled(Counting(), likelihood=likelihoods.Normal(scale=0.1))
    guide = AutoHypernet(model, example=(X, Y), conditional=None)
    torch.testing.assert_close(guide.loc[:12], torch.full((12,), 5.0))
    torch.testing.assert_close(guide.scale[:12], torch.full((12,), 0.1))


def test_a_latent_that_a_hook_adds_leaves_the_others_their_priors():
    model = BayesianModel(Counting(), prior=priors.Normal(0.5), likelihood=likelihoods.Normal(scale=0.1))
    model.register_forward_pre_hook(lambda module, args: pyro.sample("t", dist.Delta(torch.tensor(1.0))) and None)
    guide = AutoHypernet(model, example=(X, Y), conditional=None)
    assert guide.sites[0].name == "t"
    torch.testing.assert_close(guide.scale[1:], torch.full((21,), 0.5))
