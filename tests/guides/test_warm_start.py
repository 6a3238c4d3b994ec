from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from torch import nn

from bayeshnet import (
    MLP,
    AutoHypernet,
    AutoHypernetDelta,
    AutoHypernetNormal,
    BayesianModel,
    fit,
    likelihoods,
    predict,
    priors,
    start_from,
)
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.families import Family, Hypernet, Mixture, placed
from bayeshnet.hnets import HMLP, ChunkedHMLP, HPerturbWrapper
from tests.problems import EFFECTS, ERRORS, bnn, eight_schools

GUIDES = {
    "hypernet": lambda model, data: AutoHypernet(model, example=data, conditional=None),
    "independent": lambda model, data: AutoHypernet(
        model, example=data, conditional=None, family=Hypernet(noise="independent")
    ),
    "mean field": lambda model, data: AutoHypernet(model, example=data, conditional=None, family="mean_field"),
    "low rank": lambda model, data: AutoHypernet(model, example=data, conditional=None, family="low_rank"),
    "normal": lambda model, data: AutoHypernetNormal(model, example=data),
    "chunked normal": lambda model, data: AutoHypernetNormal(
        model, example=data, hnet=lambda s: ChunkedHMLP(s, 7, 8, True, cond_in_size=0, layers=(8,), verbose=False)
    ),
}
NUM = 4000


def network(dtype=torch.float32):
    return nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)).to(dtype)


def trained(guide, model, data):
    """Not at its start, where a hypernetwork is linear and its mean the bias."""
    fit(model, guide, data, steps=60, lr=0.03, num_particles=4, progress=False)
    return guide


# The few steps leave some hypernetworks bent; that is the point.
pytestmark = pytest.mark.filterwarnings(
    "ignore::bayeshnet.errors.EntropyGapWarning", "ignore::bayeshnet.errors.FoldingWarning"
)


def check_moments(guide, mean, std):
    """Compare means (and standard deviations) of draws with those wanted, by Monte Carlo error."""
    draws = guide.sample_posterior(NUM)
    for name, wanted in mean.items():
        values = draws[name].double()
        spread = values.std(0)
        # 4,096 noise draws find the mean of the hypernetwork, as many as there are draws here.
        assert bool(((values.mean(0) - wanted).abs() < 5 * 1.5 * spread / math.sqrt(NUM) + 1e-6).all()), name
        if std is not None:
            torch.testing.assert_close(spread, std[name].double(), rtol=5 * 1.5 / math.sqrt(2 * NUM), atol=0)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("form", ["module", "state", "median"])
@pytest.mark.parametrize("kind", GUIDES)
def test_from_a_network(kind, form, flat):
    model, data = bnn(flat=flat)
    net = network()
    guide = trained(GUIDES[kind](model, data), model, data)
    scales = {name: value.std(0) for name, value in guide.sample_posterior(NUM).items()}
    noise = guide.sample_posterior(NUM)["likelihood.scale"]
    source = {"module": net, "state": net.state_dict(), "median": {n: p.detach() for n, p in net.named_parameters()}}
    start_from(guide, source[form])
    wanted = {name: p.detach() for name, p in net.named_parameters()}
    if flat:
        wanted = {"weights": torch.cat([p.flatten() for p in wanted.values()])}
    check_moments(guide, wanted, {name: scales[name] for name in wanted})
    # What the network does not have stays where it was.
    after = guide.sample_posterior(NUM)["likelihood.scale"]
    assert abs(float(after.log().mean() - noise.log().mean())) < 5 * 1.5 * float(noise.log().std()) / math.sqrt(NUM)


@pytest.mark.parametrize("kind", GUIDES)
def test_from_draws(kind):
    """Location and spread, wide and narrow, constrained latents in unconstrained coordinates."""
    model, data = bnn()
    guide = trained(GUIDES[kind](model, data), model, data)
    mean = {name: torch.randn(shape) for name, shape in model.latent_shapes.items()}
    std = {name: 0.02 * 50.0 ** torch.rand(shape) for name, shape in model.latent_shapes.items()}
    draws = {name: mean[name] + std[name] * torch.randn(1000, *mean[name].shape) for name in mean}
    wanted = [{name: getattr(value, how)(0) for name, value in draws.items()} for how in ("mean", "std")]
    draws["likelihood.scale"] = draws["likelihood.scale"].exp()
    start_from(guide, draws)
    found = guide.sample_posterior(NUM)
    found["likelihood.scale"] = found["likelihood.scale"].log()
    guide.sample_posterior = lambda num: found
    check_moments(guide, *wanted)


SOURCES = {
    "AutoNormal": lambda model, data: AutoNormal(model, init_scale=0.2),
    "AutoMultivariateNormal": lambda model, data: AutoMultivariateNormal(model, init_scale=0.2),
    "AutoHypernetNormal": lambda model, data: AutoHypernetNormal(model, example=data, init_scale=0.2),
    "AutoHypernet": lambda model, data: AutoHypernet(model, example=data),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_from_another_guide(kind):
    for model, data in (bnn(), (eight_schools, (ERRORS, EFFECTS))):
        pyro.clear_param_store()  # Pyro's guides of one name share their parameters
        source = trained(SOURCES[kind](model, data), model, data)
        guide = AutoHypernetNormal(model, example=data)
        start_from(guide, source, num_samples=2000)
        again = AutoHypernetNormal(model, example=data)
        start_from(again, guide.sample_posterior(2000))
        mean, std = (part.detach() for part in guide.moments())
        other_mean, other_std = (part.detach() for part in again.moments())
        assert bool(((mean - other_mean).abs() < 5 * std * math.sqrt(2 / 2000)).all())
        torch.testing.assert_close(std, other_std, rtol=5 * math.sqrt(1 / 2000), atol=0)
        if kind == "AutoNormal":  # whose parameters are known
            exact = source.quantiles([0.5, 0.8413])  # one standard deviation apart where latents are Gaussian
            for name, (middle, above) in guide.quantiles([0.5, 0.8413]).items():
                spread = (exact[name][1] - exact[name][0]).detach()
                assert bool(((middle - exact[name][0]).abs() < 5 * 1.3 * spread / math.sqrt(2000)).all()), name
                torch.testing.assert_close(above - middle, spread, rtol=0.15, atol=0)


@pytest.mark.parametrize("make", [AutoDelta, lambda model: AutoHypernetDelta(model, example=bnn()[1])])
def test_from_map(make):
    model, data = bnn()
    source = make(model)
    fit(model, source, data, steps=200, num_particles=1, progress=False)
    exact = {name: value.detach() for name, value in source.median().items()}
    for target in (AutoHypernetNormal(model, example=data), AutoHypernetDelta(model, example=data)):
        spread = target.moments()[1] if isinstance(target, AutoHypernetNormal) else None
        start_from(target, source, num_samples=3)
        for name, value in target.median().items():
            torch.testing.assert_close(value, exact[name], rtol=1e-3, atol=1e-4)
        if spread is not None:
            torch.testing.assert_close(target.moments()[1], spread)


@pytest.mark.parametrize("conditional", ["last", "all"])
def test_conditional_layers(conditional):
    """The pseudo-targets are what the network says, so the guide predicts about what the network does."""
    x = torch.linspace(-2, 2, 60).unsqueeze(1)
    y = torch.zeros_like(x)
    net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    with torch.no_grad():
        net[2].weight.mul_(3.0)
        output = net(x)
    model = BayesianModel(net, prior=priors.Normal(1.0), likelihood=likelihoods.Normal(scale=0.1), target_shape=(1,))
    guide = AutoHypernet(model, example=(x, y), conditional=conditional)
    before = float((predict(model, guide, x, 200).mean - output).square().mean())
    start_from(guide, net)
    after = float((predict(model, guide, x, 200).mean - output).square().mean())
    torch.testing.assert_close(
        guide.inducing.points[-1].targets.float(), net(guide.inducing.inputs), rtol=1e-4, atol=1e-4
    )
    assert after < 0.05 * before
    if conditional == "all":
        torch.testing.assert_close(
            guide.inducing.points[0].targets.float(), net[0](guide.inducing.inputs), rtol=1e-4, atol=1e-4
        )


def test_a_main_network_with_batch_norm_and_a_state_dict_with_buffers():
    x, y = torch.randn(20, 3), torch.randn(20)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))
    model = BayesianModel(net.eval(), likelihood=likelihoods.Normal(scale=0.5))
    guide = AutoHypernetNormal(model, example=(x, y))
    assert "1.running_mean" in net.state_dict()
    start_from(guide, net.state_dict())
    torch.testing.assert_close(guide.median()["1.weight"], net[1].weight.detach())
    main = MLP(3, 1, (4,), verbose=False)
    model = BayesianModel(main, likelihood=likelihoods.Normal(scale=0.5))
    guide = AutoHypernetNormal(model, example=(x, y))
    start_from(guide, main)
    found = list(guide.median().values())
    for value, param in zip(found, main.internal_params, strict=True):
        torch.testing.assert_close(value, param.detach())


def test_float64_and_a_scalar_noise_scale():
    model, data = bnn(dtype=torch.float64)

    def build(shapes):
        return HPerturbWrapper(
            HMLP(shapes, 4, 0, (8,), False), learn_sigma="scalar", noise="independent", verbose=False
        )

    guide = AutoHypernet(model, example=data, hnet=build)
    net = network(torch.float64)
    draws = {name: p.detach() + 0.3 * torch.randn(500, *p.shape, dtype=p.dtype) for name, p in net.named_parameters()}
    start_from(guide, draws)
    spread = guide.sample_posterior(NUM)["0.weight"].std(0)
    assert spread.dtype == torch.float64
    assert float(spread.mean()) == pytest.approx(0.3, rel=0.5)  # one scale for all, in units of their priors


def test_a_start_helps():
    """Residuals of a random start are those of y, whose variance is 0.4: 600 nats at a known noise of 0.1."""
    _, (x, y) = bnn()
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(300):
        optimizer.zero_grad()
        (net(x).squeeze(1) - y).square().mean().backward()
        optimizer.step()
    model = BayesianModel(network(), priors.Normal(scale="fan_in"), likelihoods.Normal(0.1))
    first = []
    for start in (False, True):
        guide = AutoHypernet(model, example=(x, y), conditional=None, init_scale=0.01)
        if start:
            start_from(guide, net)
        first.append(fit(model, guide, (x, y), steps=1, progress=False).losses[0])
    assert first[1] < first[0] - 300


@pytest.mark.parametrize("of", ["mean_field", "low_rank"])
def test_a_mixture_shares_the_variance_out(of):
    """Half between its 40 components, half within: means within 4 of their standard errors, and all of it there."""
    torch.manual_seed(0)
    model, data = bnn()
    guide = AutoHypernet(model, example=data, family=Mixture(of, 40), conditional=None)
    draws = {name: 2.0 + 0.5 * torch.randn(300, *p.shape) for name, p in network().named_parameters()}
    start_from(guide, draws)
    found = guide.sample_posterior(4000)
    for name, value in draws.items():
        error = 0.5 * math.sqrt(0.5 / 40)
        torch.testing.assert_close(found[name].mean(0), value.mean(0), rtol=0.0, atol=4.0 * error)
        ratio = found[name].std(0) / value.std(0)
        # Half of the variance is that of 40 places, known to sqrt(2 / 39) of it.
        assert float(ratio.log().mean().abs()) < 4.0 * 0.25 * math.sqrt(2 / 39) / math.sqrt(ratio.numel()) + 0.02
    with torch.no_grad():
        places = torch.stack([part.distribution().rsample((200,)).mean(0) for part in guide.family.parts()])
        between = places.std(0) / guide.family.distribution().rsample((4000,)).std(0)
    assert float(between.square().mean()) == pytest.approx(0.5, abs=0.1)


def test_a_mixture_from_a_network():
    """A point has no spread: the components are then around it."""
    torch.manual_seed(0)
    model, data = bnn()
    guide, net = AutoHypernet(model, example=data, family="mixture"), network()
    start_from(guide, net)
    found = guide.sample_posterior(2000)["0.weight"].mean(0)
    # The mean of four places, each drawn a tenth of the prior's 1 / sqrt(2) around the network.
    error = 0.1 / math.sqrt(2.0) / math.sqrt(4.0)
    torch.testing.assert_close(found, net[0].weight.detach(), rtol=0.0, atol=4.0 * error)


def test_errors():
    model, data = bnn()
    net, guide = network(), AutoHypernetNormal(model, example=data)
    good = {name: p.detach() for name, p in net.named_parameters()}
    other = nn.Sequential(nn.Linear(2, 7), nn.Tanh(), nn.Linear(7, 1))
    draws = {name: torch.randn(10, *p.shape) for name, p in good.items()}
    cases = [
        (net, net, ArgumentTypeError, "guide: is a Sequential"),
        (guide, 5, ArgumentTypeError, "source: is an int"),
        (guide, model, ArgumentTypeError, "source: is a BayesianModel"),
        (guide, {"0.weight": [1.0]}, ArgumentTypeError, "source: '0.weight' is a list"),
        (guide, nn.Linear(2, 1), ArgumentError, "unknown names \\['weight', 'bias'\\] and lacks"),
        (guide, {"0.weight": good["0.weight"]}, ArgumentError, "lacks \\['0.bias', '2.weight', '2.bias'\\]"),
        (guide, other, ArgumentError, r"'0.weight' has shape \(7, 2\); pass \(6, 2\)"),
        (guide, {**draws, "2.bias": torch.randn(9, 1)}, ArgumentError, "numbers of draws differ"),
        (guide, {**good, "2.bias": torch.tensor([math.nan])}, ArgumentError, "'2.bias' has values that are not finite"),
        (guide, {**good, "likelihood.scale": torch.tensor(-1.0)}, ArgumentError, "'likelihood.scale' has values"),
        (guide, BayesianModel(net, likelihood=likelihoods.Normal(1.0)).net, ArgumentError, "keeps no weights"),
    ]
    for target, source, error, match in cases:
        with pytest.raises(error, match=match):
            start_from(target, source)
    with pytest.raises(ArgumentError, match="num_samples: is 0"):
        start_from(guide, net, num_samples=0)

    def own(hnet, **options):
        return AutoHypernet(model, example=data, hnet=hnet, **options)

    unmovable = [
        (own(lambda s: ChunkedHMLP(s, 8, 4, uncond_in_size=3, cond_in_size=0)), good, "have no bias each"),
        (own(lambda s: HMLP(s, 3, 0, use_bias=False)), good, "has no bias of its own"),
        (
            own(lambda s: HPerturbWrapper(HMLP(s, 3, 0), verbose=False)),
            draws,
            "noise scale of its hypernetwork is fixed",
        ),
    ]
    for target, source, match in unmovable:
        with pytest.raises(UsageError, match=match):
            start_from(target, source)

    class Other(Family):
        def init_parameters(self, start):
            self.loc = nn.Parameter(start.mean())

        def distribution(self, loc=None, scale=None):
            return dist.Normal(*placed(self.loc, torch.ones_like(self.loc), loc, scale)).to_event(1)

    with pytest.raises(UsageError, match=r"has the family Other, which has no warm_start\(mean, std\)"):
        start_from(AutoHypernet(model, example=data, family=Other()), good)
    assert not list(pyro.get_param_store().keys())
