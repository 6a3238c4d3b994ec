"""Every guide in every place of plain Pyro that takes a guide: it works, or is refused by name, or does not apply.

``docs/plain_pyro.md`` has the same table; a test compares the two.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer import (
    SVI,
    Importance,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    Predictive,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from pyro.infer.reparam import NeuTraReparam
from torch import nn

from bayeshnet import (
    AutoHypernet,
    AutoHypernetDelta,
    AutoHypernetNormal,
    BayesianModel,
    families,
    fit,
    likelihoods,
)
from bayeshnet.errors import ArgumentTypeError, UsageError

PAGE = (Path(__file__).parents[2] / "docs" / "plain_pyro.md").read_text(encoding="utf-8")
Y = torch.tensor([0.3, 1.2, 2.0, -0.4, 1.1, 0.7])


SINGLE = 12
"""Steps of one draw, after which one has come from each component of a mixture."""


def latents():
    # Scalars: of a vector Predictive with parallel=True leaves out the dimension of the plate.
    low, high = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in ("low", "high"))
    return low, high, pyro.sample("spread", dist.LogNormal(0.0, 0.5))


def program(y):
    """Three latents, one of them positive, in no network."""
    low, high, spread = latents()
    with pyro.plate("rows", len(y)):
        pyro.sample("obs", dist.Normal(low + high, spread), obs=y)


def enumerated(y):
    """The same latents with a label of each row."""
    low, high, spread = latents()
    with pyro.plate("rows", len(y)):
        label = pyro.sample("label", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        pyro.sample("obs", dist.Normal(torch.where(label > 0, high, low), spread), obs=y)


def summed_out(y):
    """The same with the labels summed out by hand."""
    low, high, spread = latents()
    with pyro.plate("rows", len(y)):
        parts = dist.Normal(torch.stack([low, high], -1), spread.unsqueeze(-1))
        mixture = dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.7, 0.3])), parts)
        pyro.sample("obs", mixture, obs=y)


def network():
    net = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1))
    x = torch.linspace(-1.0, 1.0, 6).unsqueeze(-1)
    return BayesianModel(net, likelihood=likelihoods.Normal(scale=0.3)), (x, Y)


def hypernet(family, **options):
    return lambda model, args: AutoHypernet(model, example=args, family=family, **options)


FAMILIES: dict[str, Any] = {
    "hypernet": families.Hypernet(),
    "block_gaussian": families.BlockGaussian(),
    "mean_field": families.MeanField(),
    "low_rank": families.LowRank(rank=2),
    "mixture": families.Mixture("low_rank", 2),
}
GUIDES: dict[str, Callable[..., Any]] = {
    **{name: hypernet(family, conditional=None) for name, family in FAMILIES.items()},
    **{f"{name}, conditional": hypernet(family) for name, family in FAMILIES.items()},
    "AutoHypernetNormal": lambda model, args: AutoHypernetNormal(model, example=args),
    "AutoHypernetDelta": lambda model, args: AutoHypernetDelta(model, example=args),
}


def built(name, model=None):
    """Model, arguments and guide: conditional layers need a network, the others get the program."""
    torch.manual_seed(0)
    conditional = name.endswith("conditional")
    model, args = network() if conditional else (model or program, (Y,))
    guide = GUIDES[name](model, args)
    if conditional:
        assert guide.inducing is not None
        guide.num_proposals = 1  # with more of them evaluation is another bound than training
    return model, args, guide


def trained(guide, before):
    """Whether every tensor of parameters has moved and is finite."""
    after = dict(guide.named_parameters())
    return all(bool(torch.isfinite(after[k]).all()) and not torch.equal(after[k], v) for k, v in before.items())


def parameters(guide):
    """Those that a few steps move: factors above a diagonal are never read."""
    return {k: v.detach().clone() for k, v in guide.named_parameters() if v.requires_grad and "factors" not in k}


def repeated(elbo, model, guide, args, seed=1):
    pyro.set_rng_seed(seed)
    return elbo.loss(model, guide, *args)


# ---------------------------------------------------------------------- the places


def svi_pyro_adam(name):
    model, args, guide = built(name)
    before = parameters(guide)
    elbo = Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    assert all(math.isfinite(svi.step(*args)) for _ in range(4))
    assert trained(guide, before)
    assert {id(p) for p in guide.parameters()} == {id(p) for p in svi.optim.optim_objs}
    assert len(pyro.get_param_store()) == 0  # where two guides could meet


def torch_optimiser(name):
    model, args, guide = built(name)
    before = parameters(guide)
    optimizer = torch.optim.Adam(guide.param_groups(0.01))
    elbo = Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    for _ in range(4):
        optimizer.zero_grad()
        elbo.differentiable_loss(model, guide, *args).backward()
        optimizer.step()
    assert trained(guide, before)


def _same_bound(name, kind):
    """Its mean is that of Trace_ELBO, within 4.5 standard errors of the difference."""
    model, args, guide = built(name)
    values = []
    for made in (Trace_ELBO, kind):
        elbo = made(num_particles=50, vectorize_particles=True, max_plate_nesting=1)
        pyro.set_rng_seed(2)
        with torch.no_grad():
            values.append(torch.tensor([elbo.loss(model, guide, *args) for _ in range(12)], dtype=torch.float64))
    plain, other = values
    error = math.sqrt(float((plain.var() + other.var()) / len(plain)))
    assert abs(float(plain.mean() - other.mean())) <= 4.5 * error + 1e-4 * abs(float(plain.mean()))
    kind(num_particles=2, vectorize_particles=True, max_plate_nesting=1).loss_and_grads(model, guide, *args)
    grads = [param.grad for param in guide.parameters() if param.grad is not None]
    assert grads
    assert all(bool(torch.isfinite(grad).all()) for grad in grads)


def trace_graph_elbo(name):
    _same_bound(name, TraceGraph_ELBO)


def trace_mean_field_elbo(name):
    _same_bound(name, TraceMeanField_ELBO)


def trace_enum_elbo(name):
    """The label beside the guide is summed out: the loss of the same draw is that of the sum written by hand."""
    torch.manual_seed(0)
    guide = GUIDES[name](poutine.block(enumerated, hide=["label"]), (Y,))
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    for seed in range(3):
        by_pyro = repeated(elbo, enumerated, guide, (Y,), seed)
        by_hand = repeated(Trace_ELBO(max_plate_nesting=1), summed_out, guide, (Y,), seed)
        assert by_pyro == pytest.approx(by_hand, rel=1e-4)
    before = parameters(guide)
    svi = SVI(enumerated, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    for _ in range(SINGLE):
        svi.step(Y)
    assert trained(guide, before)


def renyi_elbo(name):
    """At alpha 0 it is the importance-weighted bound of the same draws, by Jensen no lower than their ELBO."""
    model, args, guide = built(name)
    renyi = RenyiELBO(alpha=0.0, num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    plain = Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    assert repeated(renyi, model, guide, args) <= repeated(plain, model, guide, args) + 1e-4
    before = parameters(guide)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), renyi)
    for _ in range(4):
        svi.step(*args)
    assert trained(guide, before)


def reweighted_wake_sleep(name):
    model, args, guide = built(name)
    before = parameters(guide)
    elbo = ReweightedWakeSleep(num_particles=3, vectorize_particles=True, max_plate_nesting=1, model_has_params=False)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    for _ in range(4):
        svi.step(*args)
    assert trained(guide, before)


def poutine_scale(name):
    model, args, guide = built(name)
    whole = repeated(Trace_ELBO(), model, guide, args)
    halved = repeated(Trace_ELBO(), poutine.scale(model, scale=0.5), poutine.scale(guide, scale=0.5), args)
    assert halved == pytest.approx(0.5 * whole, rel=1e-5)


def poutine_mask(name):
    model, args, guide = built(name)
    assert repeated(Trace_ELBO(), poutine.mask(model, mask=False), poutine.mask(guide, mask=False), args) == 0.0


def poutine_block(name):
    """A model whose observations are hidden is its prior: what is left is the log-density of the draw."""
    model, args, guide = built(name)
    prior = poutine.block(model, hide=["obs"])
    pyro.set_rng_seed(1)
    guide_trace = poutine.trace(guide).get_trace(*args)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args)
    model_trace.compute_log_prob()
    rest = float(model_trace.nodes["obs"]["log_prob_sum"].detach())
    expected = repeated(Trace_ELBO(), model, guide, args) + rest
    assert repeated(Trace_ELBO(), prior, guide, args) == pytest.approx(expected, rel=1e-4, abs=1e-3)


def poutine_condition(name):
    """A guide of the conditioned model has the other latents alone."""
    torch.manual_seed(0)
    model = poutine.condition(program, {"low": torch.tensor(0.5)})
    guide = GUIDES[name](model, (Y,))
    assert [site.name for site in guide.sites] == ["high", "spread"]
    before = parameters(guide)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(SINGLE):
        svi.step(Y)
    assert trained(guide, before)


def auto_guide_list(name):
    torch.manual_seed(0)
    guide = AutoGuideList(program)
    ours = GUIDES[name](poutine.block(program, expose=["low", "high"]), (Y,))
    guide.append(ours)
    guide.append(AutoNormal(poutine.block(program, expose=["spread"])))
    assert set(guide(Y)) == {"low", "high", "spread"}
    before = parameters(ours)
    svi = SVI(program, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(SINGLE):
        svi.step(Y)
    assert trained(ours, before)
    pyro.clear_param_store()


def easy_guide(name):
    torch.manual_seed(0)
    ours = GUIDES[name](poutine.block(program, expose=["low", "high"]), (Y,))

    class Mine(EasyGuide):
        def guide(self, y):
            ours(y)
            self.map_estimate("spread")

    guide = Mine(program)
    before = parameters(ours)
    svi = SVI(program, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(SINGLE):
        svi.step(Y)
    assert trained(ours, before)
    pyro.clear_param_store()


def importance(name):
    """The marginal's draws are those of the guide, each with a finite weight."""
    model, args, guide = built(name)
    with torch.no_grad():
        run = Importance(model, guide, num_samples=20).run(*args)
    weights = torch.tensor(run.log_weights)
    assert bool(torch.isfinite(weights).all())
    assert float(weights.std()) > 0.0


def predictive(name):
    """In turn and in one call: moments of the same distribution."""
    model, args, guide = built(name)
    site = next(iter(guide().keys() if not args else guide(*args).keys()))
    for parallel in (False, True):
        pyro.set_rng_seed(1)
        draws = Predictive(model, guide=guide, num_samples=40, parallel=parallel)(*args)
        assert draws[site].shape[0] == 40
        assert bool(torch.isfinite(draws["obs"]).all())


def neutra_reparam(name):
    """The transform and its Jacobian give the guide's own density, and the model's in the noise is finite."""
    model, args, guide = built(name)
    guide.requires_grad_(False)
    transform = guide.get_transform()
    noise = torch.randn(7, guide.latent_dim)
    draws = transform(noise)
    density = guide.get_base_dist().log_prob(noise) - transform.log_abs_det_jacobian(noise, draws)
    assert torch.allclose(guide.get_posterior().log_prob(draws), density, atol=1e-3)
    trace = poutine.trace(NeuTraReparam(guide).reparam(model)).get_trace(*args)
    assert math.isfinite(float(trace.log_prob_sum().detach()))


PLACES: dict[str, Callable[[str], None]] = {
    "`SVI`, `pyro.optim.Adam`": svi_pyro_adam,
    "torch optimiser": torch_optimiser,
    "`TraceGraph_ELBO`": trace_graph_elbo,
    "`TraceMeanField_ELBO`": trace_mean_field_elbo,
    "`TraceEnum_ELBO`": trace_enum_elbo,
    "`RenyiELBO`": renyi_elbo,
    "`ReweightedWakeSleep`": reweighted_wake_sleep,
    "`poutine.scale`": poutine_scale,
    "`poutine.mask`": poutine_mask,
    "`poutine.block`": poutine_block,
    "`poutine.condition`": poutine_condition,
    "`AutoGuideList`": auto_guide_list,
    "`EasyGuide`": easy_guide,
    "`Importance`": importance,
    "`Predictive`": predictive,
    "`NeuTraReparam`": neutra_reparam,
}
ELSEWHERE = ("`TraceEnum_ELBO`", "`poutine.condition`", "`AutoGuideList`", "`EasyGuide`")
"""Places of hand-written programs, in which no layer is conditional."""
REFUSED: dict[tuple[str, str], str] = {
    **{(f"{name}, conditional", "`NeuTraReparam`"): "conditionally on inducing points" for name in FAMILIES},
    ("block_gaussian", "`NeuTraReparam`"): "a mixture of 4 Gaussians",
    ("mixture", "`NeuTraReparam`"): "no bijection of as many standard normal numbers",
    ("AutoHypernetDelta", "`NeuTraReparam`"): "is no bijection of noise",
}
NOT_APPLICABLE: set[tuple[str, str]] = {
    *((f"{name}, conditional", place) for name in FAMILIES for place in ELSEWHERE),
    # A point has no density, so neither weights nor a density at fixed values.
    ("AutoHypernetDelta", "`Importance`"),
    ("AutoHypernetDelta", "`ReweightedWakeSleep`"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", GUIDES)
def test_cell(name, place):
    if (name, place) in NOT_APPLICABLE:
        pytest.skip("does not apply")
    pyro.clear_param_store()
    if (name, place) in REFUSED:
        with pytest.raises(UsageError, match=REFUSED[name, place]):
            PLACES[place](name)
    else:
        PLACES[place](name)


def test_the_page_has_this_table():
    def cell(name, place):
        if (name, place) in NOT_APPLICABLE:
            return "-"
        return "refused" if (name, place) in REFUSED else "works"

    names = list(GUIDES)
    for place in PLACES:
        row = re.search(rf"^\| {re.escape(place)} \|(.*)\|$", PAGE, flags=re.MULTILINE)
        assert row is not None, place
        assert [entry.strip() for entry in row[1].split("|")] == [cell(name, place) for name in names], place


@pytest.mark.parametrize("kind", [JitTrace_ELBO, JitTraceGraph_ELBO, JitTraceMeanField_ELBO, JitTraceEnum_ELBO])
def test_compiled_steps_are_refused(kind):
    model, args, guide = built("hypernet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), kind())
        with pytest.raises(UsageError, match=r"Jit.*live in their modules.*Trace_ELBO"):
            svi.step(*args)
    with pytest.raises(ArgumentTypeError, match=f"loss: is a {kind.__name__}, which compiles"):
        fit(model, guide, args, steps=2, loss=kind(), progress=False)
