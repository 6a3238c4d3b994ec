"""Conditional layers of class logits: conditional in the differences, the prior in what all classes share."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bayeshnet import AutoHypernet, BayesianModel, fit, likelihoods, priors
from bayeshnet.infer import importance_sample


def classes(num, *, rows=40, inputs=2, net=None, prior=None, dtype=torch.float32):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(rows, inputs, generator=generator, dtype=dtype)
    y = ((x[:, 0] + 0.5 * torch.randn(rows, generator=generator, dtype=dtype)) * 1.5).round().long() % num
    net = nn.Linear(inputs, num) if net is None else net
    model = BayesianModel(net.to(dtype), prior=prior or priors.Normal(scale=1.0), likelihood=likelihoods.Categorical())
    return model, (x, y)


def evidence_on_a_grid(x, y):
    """Of a linear classifier of one input with two classes: the difference of logits has two weights of variance 2."""
    axis = torch.linspace(-12.0, 12.0, 481, dtype=torch.float64)
    slope, bias = torch.meshgrid(axis, axis, indexing="ij")
    logit = slope.unsqueeze(-1) * x.double()[:, 0] + bias.unsqueeze(-1)
    sign = 2.0 * y.double() - 1.0
    log_prior = -(slope.square() + bias.square()) / 4.0 - math.log(4.0 * math.pi)
    log_joint = nn.functional.logsigmoid(sign * logit).sum(-1) + log_prior
    return float(log_joint.flatten().logsumexp(0)) + 2.0 * math.log(float(axis[1] - axis[0]))


def test_a_linear_classifier_is_nearly_exact():
    """Logits that are independent would cost half a nat for each weight, whatever the pseudo-targets."""
    torch.manual_seed(0)
    model, (x, y) = classes(2, inputs=1)
    guide = AutoHypernet(model, example=(x, y))
    fit(model, guide, (x, y), steps=1000, num_particles=8, progress=False)
    evidence = evidence_on_a_grid(x, y)
    weighted = importance_sample(model, guide, (x, y), 4000)
    assert weighted.log_evidence.value == pytest.approx(evidence, abs=0.03)
    # The Gaussian of full rank is 0.03 below the evidence here; the posterior is slightly skewed.
    assert evidence - 0.08 < weighted.elbo.value < evidence + 4.0 * weighted.elbo.error


PRIORS = {
    "same": lambda num: priors.Normal(scale="fan_in"),
    "other means": lambda num: priors.Normal(scale=0.7, loc={"2.bias": torch.linspace(-1.0, 1.0, num), "*": 0.5}),
    "other scales": lambda num: priors.Normal(scale={"2.bias": torch.linspace(0.5, 2.0, num), "*": 1.0}),
}


@pytest.mark.parametrize("num", [2, 4])
@pytest.mark.parametrize("conditional", ["last", "all"])
@pytest.mark.parametrize("prior", PRIORS)
def test_draw_and_density_agree(num, conditional, prior):
    """At foreign values the density is found again from the values alone; also where the prior has other forms."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, num))
    model, data = classes(num, net=net, prior=PRIORS[prior](num), dtype=torch.float64)
    guide = AutoHypernet(model, example=data, conditional=conditional, family="mean_field", num_proposals=1)
    assert (guide.inducing.common is None) == (prior == "other scales")
    fit(model, guide, data, steps=20, progress=False)
    posterior = guide.get_posterior()
    draws = posterior.rsample((7,))
    known = posterior.log_prob(draws)
    torch.testing.assert_close(posterior.log_prob(draws.clone()), known, rtol=1e-9, atol=1e-9)


def test_density_is_normalised():
    """Importance weights of a wider Gaussian against the guide's density have mean 1."""
    torch.manual_seed(2)
    model, data = classes(3, inputs=1, dtype=torch.float64)
    guide = AutoHypernet(model, example=data)
    fit(model, guide, data, steps=200, progress=False)
    posterior = guide.get_posterior()
    draws = posterior.rsample((20_000,)).detach()
    wide = torch.distributions.MultivariateNormal(draws.mean(0), 1.5 * torch.cov(draws.T))
    values = wide.sample((20_000,))
    weights = (posterior.log_prob(values).detach() - wide.log_prob(values)).exp()
    assert float(weights.mean()) == pytest.approx(1.0, abs=4.0 * float(weights.std()) / math.sqrt(len(weights)))


def test_what_classes_share_has_its_prior():
    """The likelihood does not see it; with 4 standard errors of a standard deviation of 20,000 draws: 2 %."""
    torch.manual_seed(3)
    model, data = classes(4)
    guide = AutoHypernet(model, example=data)
    draws = guide.sample_posterior(20_000)
    for name in ("weight", "bias"):
        shared = draws[name].sum(1) / 2.0
        torch.testing.assert_close(shared.std(0), torch.ones_like(shared[0]), rtol=0.02, atol=0.0)


def test_learned_prior_scales_are_followed():
    """What all classes share has to follow the prior's scale, as nothing else tells it."""
    torch.manual_seed(4)
    model, data = classes(3, prior=priors.Normal(scale=1.0, learn=True))
    guide = AutoHypernet(model, example=data)
    fit(model, guide, data, steps=2000, num_particles=8, progress=False)
    factors = model.scale_factors
    expected = torch.tensor([*[float(factors["weight"])] * 2, float(factors["bias"])])
    assert float((expected.log()).abs().max()) > 0.3  # the scale did move
    # Adam's last steps still move a scale by about a hundredth.
    torch.testing.assert_close(guide.inducing.common.log_scale.detach().float().exp(), expected, rtol=0.1, atol=0.0)


def test_labels_of_any_integer_dtype():
    model, (x, y) = classes(2)
    for dtype in (torch.int32, torch.uint8, torch.int16):
        torch.manual_seed(5)
        assert AutoHypernet(model, example=(x, y.to(dtype))).inducing is not None


@pytest.mark.parametrize("convert", [nn.Module.float, nn.Module.double])
def test_a_converted_guide_still_draws(convert):
    """As a whole, its float64 parts included."""
    torch.manual_seed(6)
    model, (x, y) = classes(3)
    guide = convert(AutoHypernet(model, example=(x, y)))
    model = convert(model)
    guide.place_inducing(x.to(guide.loc.dtype), y)
    posterior = guide.get_posterior()
    draws = posterior.rsample((5,))
    known = posterior.log_prob(draws)
    assert draws.dtype == guide.loc.dtype
    torch.testing.assert_close(posterior.log_prob(draws.clone()), known, rtol=1e-3, atol=1e-3)
