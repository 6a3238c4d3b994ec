from __future__ import annotations

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, TraceMeanField_ELBO
from pyro.infer.autoguide import init_to_value
from torch import nn
from torch.distributions import kl_divergence

from bayeshnet import AutoHypernetNormal, fit, load, predict, save
from bayeshnet.errors import ArgumentError, ArgumentTypeError, DensityError
from bayeshnet.guides._explicit import default_explicit_hnet
from bayeshnet.hnets import HMLP, ChunkedHMLP, HContainer, HDeconv, HPerturbWrapper, StructuredHMLP
from tests.problems import EFFECTS, ERRORS, bnn, eight_schools
from tests.scenarios import PREDICTIVE, PROBLEMS, assert_elbos_agree

PARTICLES = {"num_particles": 50, "vectorize_particles": True}


def normal_model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)


def detached(guide):
    return [part.detach() for part in guide.moments()]


# ---------------------------------------------------------------------- the scenarios of every guide


@pytest.mark.filterwarnings("ignore::bayeshnet.errors.DatasetSizeWarning")  # one minibatch, again and again
@pytest.mark.parametrize("problem", PROBLEMS)
def test_elbos_agree(problem):
    model, args = PROBLEMS[problem]()
    guide = AutoHypernetNormal(model, example=args)
    fit(model, guide, args, steps=60, progress=False)
    assert_elbos_agree(model, guide, args, loops=120)
    assert not list(pyro.get_param_store().keys())


@pytest.mark.parametrize(("problem", "parallel"), PREDICTIVE)
def test_predictive(problem, parallel):
    model, args = PROBLEMS[problem]()
    guide = AutoHypernetNormal(model, example=args)
    inputs = args if problem == "constrained" else args[:1]
    out = Predictive(model, guide=guide, num_samples=6, parallel=parallel)(*inputs)
    assert out["obs"].shape == (6, len(args[-1]))
    for site in guide.sites:
        assert out[site.name].shape[0] == 6
        assert len(torch.unique(out[site.name].reshape(6, -1), dim=0)) == 6


def test_subsampled_plates_and_plain_svi():
    y = torch.randn(40) + 2.0

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(y), subsample_size=10) as rows:
            pyro.sample("obs", dist.Normal(mu, 1.0), obs=y[rows])

    guide = AutoHypernetNormal(model, example=(y,))
    loss = TraceMeanField_ELBO(num_particles=8, vectorize_particles=True)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.01 ** (1 / 600)}), loss)
    for _ in range(600):
        svi.step(y)
    mean, std = detached(guide)
    # Exact: 0.9990 times the mean of y, standard deviation 0.158; the noise of subsampling widens the tolerance.
    assert abs(float(mean) - float(y.mean())) < 0.1
    assert float(std) == pytest.approx(0.158, rel=0.25)


# ---------------------------------------------------------------------- the Gaussian


@pytest.mark.parametrize("flat", [False, True])
def test_kl_is_exact(flat):
    """The loss without data has no variance under TraceMeanField_ELBO, and is the KL of the formula."""
    model, (x, y) = bnn(flat=flat, dtype=torch.float64)
    weights_only = poutine.block(poutine.mask(model, mask=True), hide=["obs", "likelihood.scale"])
    guide = AutoHypernetNormal(model, example=(x, y))
    fit(model, guide, (x, y), steps=20, progress=False)
    vectorised = TraceMeanField_ELBO(num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    hidden = poutine.block(guide, hide_fn=lambda site: "likelihood" in site["name"])
    for elbo in (TraceMeanField_ELBO(), vectorised):
        losses = {elbo.loss(weights_only, hidden, x, y) for _ in range(4)}
        assert max(losses) - min(losses) < 1e-9 * abs(min(losses))
    mean, std = (part[:-1] for part in guide.moments())  # without the noise level
    prior = [fn.base_dist for fn in model.weight_priors().values()]
    loc, scale = (torch.cat([getattr(p, key).reshape(-1) for p in prior]) for key in ("loc", "scale"))
    expected = kl_divergence(dist.Normal(mean, std), dist.Normal(loc, scale)).sum()
    assert losses.pop() == pytest.approx(float(expected.detach()), rel=1e-9)


def test_sites_are_plain_normals():
    model, args = eight_schools, (ERRORS, EFFECTS)
    guide = AutoHypernetNormal(model, example=args)
    trace = poutine.trace(guide).get_trace(*args)
    assert isinstance(trace.nodes["mu"]["fn"], dist.Normal)
    assert isinstance(trace.nodes["eta"]["fn"], dist.Normal)
    assert trace.nodes["tau_unconstrained"]["infer"]["is_auxiliary"]
    # log q of the constrained site: the Gaussian's, less the Jacobian of exp.
    u = trace.nodes["tau_unconstrained"]["value"]
    mean, std = guide.moments()
    expected = dist.Normal(mean[1], std[1]).log_prob(u) - u
    trace.compute_log_prob()
    found = trace.nodes["tau_unconstrained"]["log_prob"] + trace.nodes["_jac_tau"]["log_prob"]
    torch.testing.assert_close(found + trace.nodes["tau"]["log_prob"], expected)
    torch.testing.assert_close(trace.nodes["tau"]["value"], u.exp())


def test_a_conjugate_posterior():
    y = torch.tensor([1.0, 2.0, 4.0])
    guide = AutoHypernetNormal(normal_model, example=(y,))
    loss = TraceMeanField_ELBO(num_particles=16, vectorize_particles=True)
    fit(normal_model, guide, (y,), steps=800, loss=loss, progress=False)
    precision = 3.0 + 1.0 / 25.0
    mean, std = detached(guide)
    assert float(mean) == pytest.approx(7.0 / precision, abs=0.02)
    assert float(std) == pytest.approx(precision**-0.5, abs=0.02)
    levels = [0.1, 0.5, 0.9]
    expected = dist.Normal(mean, std).icdf(torch.tensor(levels))
    torch.testing.assert_close(guide.quantiles(levels)["mu"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(guide.median()["mu"], mean[0])
    draws = guide.sample_posterior(20_000)["mu"]
    # The error of the mean is std / sqrt(20,000), that of the standard deviation 0.7 of it.
    assert abs(float(draws.mean() - mean)) < 4 * float(std) / math.sqrt(20_000)
    assert abs(float(draws.std() - std)) < 4 * float(std) / math.sqrt(40_000)


# ---------------------------------------------------------------------- the start


def assemble(chunks):
    return [tensor for chunk in chunks for tensor in chunk]


def structured(shapes):
    kwargs = {"layers": [16]}
    return StructuredHMLP(shapes, [[s] for s in shapes], [1] * len(shapes), 2, kwargs, assemble, cond_in_size=4)


def join(hnets, uncond, cond):
    return [*(tensor for part in hnets for tensor in part), *uncond]


def container(shapes):
    parts = [HMLP([shape], 0, 4, (8,)) for shape in shapes[:-1]]
    return HContainer(shapes, join, parts, uncond_param_shapes=shapes[-1:])


def deconv(shapes):
    side = math.ceil(math.sqrt(sum(math.prod(shape) for shape in shapes)))
    options = {"num_layers": 3, "num_filters": [8, 4], "kernel_size": 3, "sa_units": ()}
    return HDeconv(shapes, (side, side), cond_in_size=4, **options)


HNETS = {
    "default": None,
    "hmlp": lambda shapes: HMLP(shapes, cond_in_size=5, layers=(12,), verbose=False),
    "no bias": lambda shapes: HMLP(shapes, cond_in_size=64, layers=(64,), use_bias=False, verbose=False),
    "chunked": lambda shapes: ChunkedHMLP(shapes, 7, 16, True, cond_in_size=0, layers=(32,), verbose=False),
    "structured": structured,
    "container": container,
    "deconv": deconv,
}


@pytest.mark.parametrize("kind", HNETS)
def test_start(kind):
    model, args = bnn()
    options = {"mean_var": 0.09, "rho_var": 0.01, "init_scale": 0.05}
    means, logs = [], []
    for _ in range(20):
        guide = AutoHypernetNormal(model, example=args, hnet=HNETS[kind], **options)
        mean, std = guide.moments()
        gaussian = slice(None, -1)  # the last latent, the noise level, is no Normal
        means.append(((mean - guide.loc) / guide.scale)[gaussian].detach())
        logs.append((std / guide.scale)[gaussian].log().detach())
    mean, log = torch.cat(means), torch.cat(logs)
    # Where outputs share their input, 20 draws are what counts, hence a factor of 2 rather than a standard error.
    assert 0.15 < float(mean.std()) < 0.6
    assert float(log.median()) == pytest.approx(math.log(0.05), abs=0.15)
    if kind not in ("no bias", "chunked"):  # there the spread of rho is that of the whole chunk or input
        assert float(log.std()) < 0.2
    history = fit(model, guide, args, steps=10, num_particles=4, progress=False)
    assert all(math.isfinite(loss) for loss in history.losses)
    assert predict(model, guide, args[0], num_samples=5).mean.shape == (30,)


def test_exact_start():
    model, args = eight_schools, (ERRORS, EFFECTS)
    start = {"mu": torch.tensor(4.0), "tau": torch.tensor(2.0), "eta": torch.full((8,), 0.5)}
    for std in ("softplus", "exp"):
        guide = AutoHypernetNormal(
            model, example=args, init_loc_fn=init_to_value(values=start), init_scale=1e-3, rho_var=0.0, std=std
        )
        for name, value in guide.median().items():
            torch.testing.assert_close(value, start[name])
        torch.testing.assert_close(guide.moments()[1], 1e-3 * guide.scale)
        assert guide.scale[0] == 5.0
    guide = AutoHypernetNormal(model, example=args, whiten=False, rho_var=0.0)
    torch.testing.assert_close(guide.moments()[1], torch.full((10,), 0.1))


def test_default_hypernetwork_by_size():
    assert isinstance(default_explicit_hnet([[10, 10]] * 2), HMLP)
    large = default_explicit_hnet([[1500, 1000]] * 2)
    assert isinstance(large, ChunkedHMLP)
    assert large.num_params < 0.1 * large.num_outputs


def test_move_to():
    model, args = bnn()
    guide = AutoHypernetNormal(model, example=args)
    mean, std = torch.randn(guide.latent_dim), torch.rand(guide.latent_dim) + 0.01
    before = guide.moments()
    mean[3] = std[5] = math.nan
    guide.move_to(mean, std)
    for found, wanted, old in zip(guide.moments(), (mean, std), before, strict=True):
        torch.testing.assert_close(found, torch.where(wanted.isnan(), old, wanted), rtol=1e-4, atol=1e-5)
    for bad, match in (((mean[1:], None), "mean: has shape"), ((mean, -std), "std: has entries")):
        with pytest.raises(ArgumentError, match=match):
            guide.move_to(*bad)


# ---------------------------------------------------------------------- conditions


def test_conditions_have_posteriors_of_their_own():
    tasks = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-6.0, -5.0, -4.0])]
    hnet = HMLP([[], []], cond_in_size=4, num_cond_embs=2, layers=(8,), verbose=False)
    guides = [AutoHypernetNormal(normal_model, example=(y,), hnet=hnet, cond_id=i) for i, y in enumerate(tasks)]
    assert guides[0].hnet is guides[1].hnet

    def both(tasks):
        for i, y in enumerate(tasks):
            with pyro.poutine.scale(scale=1.0), _prefix(f"task{i}."):
                normal_model(y)

    def both_guides(tasks):
        for i, guide in enumerate(guides):
            with _prefix(f"task{i}."):
                guide(tasks[i])

    loss = TraceMeanField_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    fit(both, both_guides, {"tasks": tasks}, steps=1000, lr=0.01, loss=loss, progress=False)
    for guide, y in zip(guides, tasks, strict=True):
        mean, std = detached(guide)
        precision = 3.0 + 1.0 / 25.0
        assert float(mean) == pytest.approx(float(y.sum()) / precision, abs=0.1)
        assert float(std) == pytest.approx(precision**-0.5, abs=0.05)
    # One guide, set to the other condition.
    guides[0].cond_id = 1
    assert torch.equal(guides[0].moments()[0], guides[1].moments()[0])
    assert "cond_id=1" in repr(guides[0])
    with pytest.raises(ArgumentError, match="cond_id: is 2; pass a number from 0 to 1"):
        guides[0].cond_id = 2


class _prefix(poutine.messenger.Messenger):
    """Names of sites and plates begin with this."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.prefix = prefix

    def _pyro_sample(self, msg):
        if not msg["name"].startswith(self.prefix):
            msg["name"] = self.prefix + msg["name"]


# ---------------------------------------------------------------------- modules


def test_state_copies_and_checkpoints(tmp_path):
    model, args = bnn()
    guide = AutoHypernetNormal(model, example=args)
    pointers = [t.data_ptr() for t in guide.state_dict().values()]
    assert len(pointers) == len(set(pointers))
    assert len(guide.state_dict()) == len(list(guide.parameters())) + len(list(guide.buffers()))
    fit(model, guide, args, steps=3, progress=False)
    for other in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        torch.testing.assert_close(other.moments(), guide.moments())
    save(tmp_path / "run", guide=guide)
    fresh = AutoHypernetNormal(model, example=args)
    assert not torch.equal(fresh.moments()[0], guide.moments()[0])
    load(tmp_path / "run", guide=fresh)
    assert torch.equal(fresh.moments()[0], guide.moments()[0])


def test_float64_and_param_groups():
    model, args = bnn(dtype=torch.float64)
    guide = AutoHypernetNormal(model, example=args)
    fit(model, guide, args, steps=3, progress=False)
    assert guide()["0.weight"].dtype == torch.float64
    fast, slow = guide.param_groups(0.1)
    assert [len(group["params"]) for group in (fast, slow)] == [1, 4]
    assert slow["lr"] == pytest.approx(0.03)


def test_errors():
    model, args = bnn()
    total = 2 * 26

    def build(**options):
        return lambda shapes: HMLP(shapes, cond_in_size=3, verbose=False, **options)

    cases = [
        ({"hnet": lambda shapes: nn.Linear(1, 1)}, ArgumentTypeError, "hnet: returned a Linear"),
        ({"hnet": 5}, ArgumentTypeError, "hnet: is an int"),
        ({"hnet": lambda shapes: HMLP([[3]], verbose=False)}, ArgumentError, f"produces 3 numbers, but {total} are"),
        ({"hnet": build(uncond_in_size=2)}, ArgumentError, "hnet: takes noise"),
        ({"hnet": lambda s: HPerturbWrapper(build()(s), verbose=False)}, ArgumentError, "hnet: takes noise"),
        ({"hnet": build(use_batch_norm=True)}, DensityError, "hnet: has batch norm"),
        ({"hnet": build(dropout_rate=0.1)}, DensityError, "hnet: has dropout"),
        ({"hnet": build(num_cond_embs=3)}, ArgumentError, "cond_id: is None; pass a number from 0 to 2"),
        ({"cond_id": 1}, ArgumentError, "cond_id: is 1; pass a number from 0 to 0"),
        ({"cond_id": True}, ArgumentError, "cond_id: is True"),
        ({"std": "sigmoid"}, ArgumentError, "std: is 'sigmoid'"),
        ({"init_scale": 0.0}, ArgumentError, "init_scale: is 0.0"),
        ({"mean_var": -1.0}, ArgumentError, "mean_var: is -1.0"),
        ({"rho_var": math.inf}, ArgumentError, "rho_var: is inf"),
    ]
    for options, error, match in cases:
        with pytest.raises(error, match=match):
            AutoHypernetNormal(model, example=args, **options)
    with pytest.raises(ArgumentError, match="example: has no targets"):
        AutoHypernetNormal(model, example=args[:1])
    with pytest.raises(ArgumentError, match="quantiles: is"):
        AutoHypernetNormal(model, example=args).quantiles([1.5])
