"""Models whose latents a guide would get wrong without a word: refused when it is built."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.reparam import NeuTraReparam
from pyro.nn import PyroModule, PyroSample
from torch import nn

from bayeshnet import AutoHypernet, AutoHypernetDelta, AutoHypernetNormal, BayesianModel, likelihoods
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError

Y = torch.randn(40, generator=torch.Generator().manual_seed(0))


class Sampled(PyroModule):
    def __init__(self):
        super().__init__()
        self.layer = PyroModule[nn.Linear](1, 1)
        self.layer.weight = PyroSample(dist.Normal(torch.zeros(1, 1), 1.0).to_event(2))

    def forward(self, x):
        with pyro.plate("rows", len(x)):
            pyro.sample("obs", dist.Normal(self.layer(x).squeeze(-1), 1.0), obs=x.squeeze(-1))


class Spread(PyroModule):
    """A site of its own is no layer."""

    def __init__(self):
        super().__init__()
        self.scale = PyroSample(dist.LogNormal(0.0, 1.0))

    def forward(self, y):
        with pyro.plate("rows", len(y)):
            pyro.sample("obs", dist.Normal(0.0, self.scale), obs=y)


@pytest.mark.parametrize("guide", [AutoHypernet, AutoHypernetNormal, AutoHypernetDelta])
def test_layers_of_pyro_samples(guide):
    with pytest.raises(ArgumentTypeError, match=r"'layer' has weights \['weight'\] that are a PyroSample.*BayesianM"):
        guide(Sampled(), example=(torch.randn(5, 1),))
    assert [site.name for site in guide(Spread(), example=(Y,)).sites] == ["scale"]


def test_a_network_of_pyro_samples():
    """Refused where the model is built, not by the guide alone: one of Pyro's would not say so."""
    for net, name in ((Sampled(), "layer"), (nn.Sequential(nn.Linear(2, 1), Sampled()), r"1\.layer")):
        with pytest.raises(ArgumentTypeError, match=rf"net: its module '{name}' has weights \['weight'\] .*PyroSample"):
            BayesianModel(net, likelihood=likelihoods.Normal(scale=0.1))


@pytest.mark.parametrize("guide", [AutoHypernet, AutoHypernetNormal, AutoHypernetDelta])
def test_local_latents_of_a_subsampled_plate(guide):
    def model(y, size):
        with pyro.plate("rows", len(y), subsample_size=size) as rows:
            local = pyro.sample("local", dist.Normal(0.0, 1.0))
            pyro.sample("obs", dist.Normal(local, 1.0), obs=y[rows])

    with pytest.raises(ArgumentError, match=r"'local' is local to the plate 'rows', of which only 10 of 40 rows"):
        guide(model, example=(Y, 10))
    whole = guide(model, example=(Y, None))
    assert whole(Y, None)["local"].shape == (40,)  # a coordinate each


def test_a_subsampled_plate_of_observations_alone():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y), subsample_size=10) as rows:
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=y[rows])

    assert AutoHypernet(model, example=(Y,)).latent_dim == 1


def correlated(y):
    means = pyro.sample("means", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("obs", dist.Normal(means.sum(-1, keepdim=True), 1.0), obs=y)


@pytest.mark.slow
@pytest.mark.parametrize("guide", [AutoHypernet, AutoHypernetNormal])
def test_nuts_in_noise_space_finds_a_known_posterior(guide):
    """A Gaussian one, whatever the guide: mean and covariance within 4.5 standard errors at 100 effective draws."""
    y = torch.tensor([1.0, 2.0, 1.5])
    pyro.set_rng_seed(0)
    made = guide(correlated, example=(y,))
    neutra = NeuTraReparam(made.requires_grad_(False))
    mcmc = MCMC(NUTS(neutra.reparam(correlated)), num_samples=300, warmup_steps=150, disable_progbar=True)
    mcmc.run(y)
    draws = neutra.transform_sample(mcmc.get_samples()["means_shared_latent"])["means"]
    covariance = (torch.eye(2) + 3.0 * torch.ones(2, 2)).inverse()
    mean = covariance @ torch.full((2,), 4.5)
    assert float((draws.mean(0) - mean).abs().max()) < 4.5 * math.sqrt(float(covariance[0, 0]) / 100)
    error = float(covariance[0, 0]) * math.sqrt(2.0 / 100)
    assert float((torch.cov(draws.T) - covariance).abs().max()) < 4.5 * error


def test_a_hypernetwork_that_folds_is_no_bijection():
    guide = AutoHypernet(correlated, example=(Y,))
    with torch.no_grad():
        guide.hnet.internal_hnet.internal_params[-1].fill_(-1.0)
        guide.hnet.internal_hnet.internal_params[-3].copy_(5.0 * torch.randn(2, 64))
    with pytest.raises(UsageError, match=r"folds at .* so that it is no bijection"):
        guide.get_transform()


@pytest.mark.slow
@pytest.mark.parametrize(("particles", "steps"), [(1, 300), (16, 300)])
def test_plain_svi_ends_no_lower_than_autonormal(particles, steps):
    """On ten weights of a regression; ``benchmarks/pyro_models.py --loop plain`` has the whole table."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 10, generator=generator)
    labels = torch.bernoulli((x @ torch.randn(10, generator=generator)).sigmoid(), generator=generator)

    def model():
        weights = pyro.sample("weights", dist.Normal(torch.zeros(10), 1.0).to_event(1))
        logits = (weights @ x.t()).squeeze(-2) if weights.dim() > 1 else x @ weights
        with pyro.plate("rows", 60):
            pyro.sample("obs", dist.Bernoulli(logits=logits), obs=labels)

    elbos = []
    measure = Trace_ELBO(num_particles=2000, vectorize_particles=True, max_plate_nesting=1)
    for made in (AutoHypernet(model, example=()), AutoNormal(model)):
        pyro.set_rng_seed(0)
        loss = Trace_ELBO(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=1)
        svi = SVI(model, made, pyro.optim.Adam({"lr": 0.01}), loss)
        for _ in range(steps):
            svi.step()
        with torch.no_grad():
            elbos.append(-measure.loss(model, made))
    assert elbos[0] > elbos[1] - 0.5
    pyro.clear_param_store()
