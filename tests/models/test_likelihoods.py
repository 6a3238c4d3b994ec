from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.models import likelihoods


def test_known_scale_and_precision_agree():
    f = torch.randn(4, 7, 2)
    by_scale = likelihoods.Normal(scale=0.5).conditional(f, {}, batch_dims=2)
    by_precision = likelihoods.Normal(precision=4.0).conditional(f, {}, batch_dims=2)
    y = torch.randn(7, 2)
    torch.testing.assert_close(by_scale.log_prob(y), by_precision.log_prob(y))
    assert by_scale.batch_shape == (4, 7)
    assert by_scale.event_shape == (2,)


@pytest.mark.parametrize("lead", [(), (5,), (5, 3)])
@pytest.mark.parametrize("event", [(), (2,)])
@pytest.mark.parametrize("extra", [(), (1,)])
def test_latent_scale_broadcasts_from_every_place_pyro_puts_it(lead, event, extra):
    """Vectorised particles give [P, 1, *event], a parallel Predictive [S, *event] or [S, 1]."""
    prior = dist.Gamma(6.0, 6.0).expand(event).to_event(len(event))
    likelihood = likelihoods.Normal(scale=prior)
    scale = torch.rand((*lead, *extra, *event)) + 0.5
    f = torch.randn(*lead, 7, *(event or (1,)))
    conditional = likelihood.conditional(f, {"scale": scale}, batch_dims=len(lead) + 1)
    assert conditional.batch_shape == (*lead, 7)
    expected = scale.reshape(*lead, 1, *(event or (1,))).expand(f.shape)
    torch.testing.assert_close(conditional.variance.sqrt().reshape(f.shape), expected)


@pytest.mark.parametrize("lead", [(), (5,), (5, 3)])
@pytest.mark.parametrize(("event", "outputs"), [((1,), ()), ((1,), (2,)), ((2,), (3, 2)), ((3, 1), (3, 2))])
def test_noise_of_length_1_or_of_the_last_dimension(lead, event, outputs):
    likelihood = likelihoods.Normal(scale=dist.Gamma(6.0, 6.0).expand(event).to_event(len(event)))
    scale = torch.rand((*lead, 1, *event)) + 0.5
    f = torch.randn(*lead, 7, *outputs)
    conditional = likelihood.conditional(f, {"scale": scale}, batch_dims=len(lead) + 1)
    assert conditional.batch_shape == (*lead, 7)
    inner = event[len(event) - len(outputs) :] if outputs else ()
    padded = scale.reshape(*lead, 1, *(1,) * (len(outputs) - len(inner)), *inner)
    torch.testing.assert_close(conditional.variance.sqrt(), padded.expand(f.shape))
    if event == (1,):
        known = likelihoods.Normal(scale=torch.tensor([0.5])).conditional(f, {}, batch_dims=len(lead) + 1)
        torch.testing.assert_close(known.variance, torch.full(f.shape, 0.25))


@pytest.mark.parametrize("argument", ["scale", "precision"])
@pytest.mark.parametrize("kind", ["known", "learned", "latent"])
@pytest.mark.parametrize(("outputs", "num"), [((), 1), ((1,), 1), ((2,), 2), ((3, 2), 2)])
@pytest.mark.parametrize("length", [3, 7])
def test_noise_of_another_length_than_the_outputs(argument, kind, outputs, num, length):
    """One for each of the 7 rows would count every row 7 times, or be the noise of whatever row comes at its place."""
    value = torch.full((length,), 0.5)
    noise = dist.Gamma(6.0, value).to_event(1) if kind == "latent" else value
    likelihood = likelihoods.Normal(**{argument: noise}, learn=kind == "learned")
    what = rf"{argument}: .*\({length},\).* {num} outputs? .*{r'expand' if kind == 'latent' else 'pass one number'}"
    with pytest.raises(ArgumentError, match=what):
        likelihood.conditional(torch.zeros(7, *outputs), {argument: value}, batch_dims=1)


def test_a_noise_prior_needs_an_event_dimension():
    for size, fix in (((3,), 1), ((1,), 1), ((2, 3), 2)):
        with pytest.raises(ArgumentError, match=rf"precision: .* batch shape .*; call \.to_event\({fix}\)"):
            likelihoods.Normal(precision=dist.LogNormal(torch.zeros(size), 1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("given", [torch.float32, torch.float64])
def test_noise_follows_the_dtype_of_the_outputs(dtype, given):
    f = torch.zeros(7, 2, dtype=dtype)
    known = torch.tensor([0.5, 2.0], dtype=given)
    for conditional in (
        likelihoods.Normal(scale=known).conditional(f, {}, batch_dims=1),
        likelihoods.Normal(precision=known, learn=True).conditional(f, {}, batch_dims=1),
        likelihoods.Normal(scale=dist.Gamma(6.0, known).to_event(1)).conditional(f, {"scale": known}, batch_dims=1),
    ):
        assert conditional.variance.dtype == dtype
        assert conditional.log_prob(f).dtype == dtype
    # outputs under autocast have fewer bits than the network's weights
    half = likelihoods.Normal(scale=known).conditional(f.bfloat16(), {}, batch_dims=1)
    assert half.variance.dtype == given


def test_learned_scale_is_a_parameter_and_known_is_a_buffer():
    learned = likelihoods.Normal(scale=0.5, learn=True)
    assert [name for name, _ in learned.named_parameters()] == ["log_scale"]
    known = likelihoods.Normal(scale=torch.tensor([0.1, 0.2]))
    assert not list(known.parameters())
    assert list(known.state_dict()) == ["log_scale"]
    assert "0.5" in repr(learned)


def test_errors():
    with pytest.raises(ArgumentError, match="scale, precision: both"):
        likelihoods.Normal(scale=1.0, precision=1.0)
    with pytest.raises(ArgumentError, match="scale, precision: neither"):
        likelihoods.Normal()
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ArgumentError, match="scale: is"):
            likelihoods.Normal(scale=bad)
    with pytest.raises(ArgumentTypeError, match="scale: is a str"):
        likelihoods.Normal(scale="learned")
    with pytest.raises(ArgumentError, match="learn: scale has a prior"):
        likelihoods.Normal(scale=dist.Gamma(1.0, 1.0), learn=True)
    with pytest.raises(ArgumentError, match="not restricted to positive"):
        likelihoods.Normal(scale=dist.Normal(0.0, 1.0))
    with pytest.raises(ArgumentTypeError, match=r"y: has dtype torch.int64"):
        likelihoods.Normal(scale=1.0).check_target(torch.zeros(3, dtype=torch.long), torch.Size((1,)))
    with pytest.raises(ArgumentTypeError, match=r"try y.long\(\)"):
        likelihoods.Categorical().check_target(torch.zeros(3), torch.Size((4,)))
    with pytest.raises(ArgumentError, match=r"y: holds labels 0..4; the network gives 4 logits"):
        likelihoods.Categorical().check_target(torch.arange(5), torch.Size((4,)))
    with pytest.raises(ArgumentError, match="at least 2 logits"):
        likelihoods.Categorical().target_event(torch.Size((1,)))


@pytest.mark.parametrize(
    "prior", [dist.HalfNormal(1.0), dist.LogNormal(0.0, 1.0), dist.HalfCauchy(1.0), dist.Uniform(0.1, 2.0)]
)
def test_positive_priors_are_accepted(prior):
    assert likelihoods.Normal(scale=prior).priors() == {"scale": prior}


def test_categorical_over_more_than_one_position():
    conditional = likelihoods.Categorical().conditional(torch.zeros(4, 7, 5, 3), {}, batch_dims=2)
    assert conditional.batch_shape == (4, 7)
    assert conditional.event_shape == (5,)
