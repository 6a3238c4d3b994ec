"""``to_arviz`` against densities, outputs and leave-one-out formulas computed here; runs with ArviZ 0.2x and 1.x."""

from __future__ import annotations

import inspect
import math
import types

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoNormal
from torch import nn

from bayeshnet import AutoHypernet, BayesianModel, importance_sample, likelihoods, priors
from bayeshnet.arviz import _variables, to_arviz
from bayeshnet.errors import ArgumentError, ArgumentTypeError, BayeshnetWarning
from bayeshnet.evaluation import pareto_smooth

SCALE = 0.3


def groups_of(idata):
    """Names of the groups of an InferenceData or a DataTree."""
    return set(idata.groups()) if callable(idata.groups) else {name.strip("/") for name in idata.groups} - {""}


def elpd(found):
    return float(found.elpd_loo if "elpd_loo" in dir(found) else found.elpd)


def values(idata, group, name):
    """All draws ``[S, ...]`` of a variable, chains after each other."""
    array = idata[group][name].values
    return torch.as_tensor(array.reshape(-1, *array.shape[2:]))


def line(rows=30, dtype=torch.float64):
    torch.manual_seed(1)
    x = torch.randn(rows, 2, dtype=dtype)
    y = x @ torch.tensor([1.0, -0.5], dtype=dtype) + 0.2 + SCALE * torch.randn(rows, dtype=dtype)
    return x, y


def linear_model(dtype=torch.float64, **options):
    return BayesianModel(
        nn.Linear(2, 1, dtype=dtype),
        prior=priors.Normal(scale=1.0),
        likelihood=likelihoods.Normal(scale=SCALE),
        **options,
    )


def posterior_of_line(x, y):
    """Mean and covariance of ``(w_1, w_2, b)``, by conjugacy, and the design matrix."""
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    covariance = (design.T @ design / SCALE**2 + torch.eye(3, dtype=x.dtype)).inverse()
    return covariance @ design.T @ y / SCALE**2, covariance, design


def exact_draws(x, y, num):
    mean, covariance, _ = posterior_of_line(x, y)
    draws = dist.MultivariateNormal(mean, covariance).sample((num,))
    return {"weight": draws[:, None, :2], "bias": draws[:, 2:]}


@pytest.fixture(scope="module")
def regression():
    pyro.set_rng_seed(0)
    x, y = line()
    model = linear_model()
    guide = AutoHypernet(model, example=(x, y))
    return x, y, model, guide, to_arviz(model, guide, (x, y), num_samples=200, prior=50)


def test_every_group_holds_what_it_says(regression):
    x, y, _, _, idata = regression
    assert groups_of(idata) == {
        "posterior",
        "functions",
        "log_likelihood",
        "posterior_predictive",
        "prior",
        "prior_predictive",
        "observed_data",
        "constant_data",
    }
    w, b = values(idata, "posterior", "weight"), values(idata, "posterior", "bias")
    f = (w @ x.T).squeeze(1) + b
    torch.testing.assert_close(values(idata, "functions", "outputs"), f)
    torch.testing.assert_close(values(idata, "functions", "mean"), f)
    torch.testing.assert_close(values(idata, "log_likelihood", "obs"), dist.Normal(f, SCALE).log_prob(y))
    noise = (values(idata, "posterior_predictive", "obs") - f) / SCALE
    assert abs(float(noise.mean())) < 4 / math.sqrt(noise.numel())
    assert abs(float(noise.var()) - 1) < 4 * math.sqrt(2 / noise.numel())
    assert np.array_equal(idata["observed_data"]["obs"].values, y.numpy())
    assert np.array_equal(idata["constant_data"]["x"].values, x.numpy())
    assert dict(idata["posterior"]["weight"].sizes) == {"chain": 1, "draw": 200, "weight_dim_0": 1, "weight_dim_1": 2}
    assert dict(idata["log_likelihood"]["obs"].sizes) == {"chain": 1, "draw": 200, "row": 30}
    assert "not of the exact posterior" in idata.attrs["draws_of"]


def test_the_prior_is_that_of_the_model(regression):
    x, _, _, _, idata = regression
    w, b = values(idata, "prior", "weight"), values(idata, "prior", "bias")
    assert w.shape == (50, 1, 2)
    assert float(w.var()) == pytest.approx(1.0, abs=4 * math.sqrt(2 / w.numel()))
    noise = (values(idata, "prior_predictive", "obs") - (w @ x.T).squeeze(1) - b) / SCALE
    assert float(noise.var()) == pytest.approx(1.0, abs=4 * math.sqrt(2 / noise.numel()))


def test_scores_are_those_of_our_own_log_likelihoods():
    x, y = line()
    idata = to_arviz(linear_model(), exact_draws(x, y, 1000), (x, y))
    ll = values(idata, "log_likelihood", "obs")
    found = arviz.loo(idata, pointwise=True)
    smoothed = [pareto_smooth(-row) for row in ll.T]
    own = [float(torch.logsumexp(s.normalised.log() + row, 0)) for s, row in zip(smoothed, ll.T, strict=True)]
    pointwise = np.asarray(found.loo_i if "loo_i" in dir(found) else found.elpd_i).reshape(-1)
    # Both smooth by the same paper; a k-hat near 0 leaves what they round differently far below this.
    assert np.allclose(pointwise, own, atol=1e-3)
    assert elpd(found) == pytest.approx(sum(own), abs=1e-2)
    if "waic" in vars(arviz):  # no longer in version 1
        waic = (torch.logsumexp(ll, 0) - math.log(len(ll)) - ll.var(0, unbiased=False)).sum()
        assert float(arviz.waic(idata).elpd_waic) == pytest.approx(float(waic), abs=1e-6)


def test_loo_of_exact_draws_is_leave_one_out_of_linear_regression():
    x, y = line()
    mean, covariance, design = posterior_of_line(x, y)
    leverage = (design @ covariance * design).sum(1) / SCALE**2
    residual = (y - design @ mean) / (1 - leverage)
    exact = float(dist.Normal(0.0, SCALE / (1 - leverage).sqrt()).log_prob(residual).sum())
    # The formula itself, against leaving out the first row.
    m, c, _ = posterior_of_line(x[1:], y[1:])
    first = dist.Normal(design[0] @ m, (design[0] @ c @ design[0] + SCALE**2).sqrt()).log_prob(y[0])
    by_formula = dist.Normal(0.0, SCALE / (1 - leverage[0]).sqrt()).log_prob(residual[0])
    torch.testing.assert_close(first, by_formula)

    model = linear_model()
    repeated = torch.tensor(
        [elpd(arviz.loo(to_arviz(model, exact_draws(x, y, 2000), (x, y), functions=False))) for _ in range(8)]
    )
    error = float(repeated.std()) / math.sqrt(8)
    assert error < 0.05
    assert abs(float(repeated.mean()) - exact) < 4 * error


@pytest.mark.filterwarnings(
    "ignore:The inplace keyword in DataFrame:DeprecationWarning"
)  # of ArviZ 0.23, with pandas 3
def test_compare_ranks_the_model_that_is_true():
    x, y = line()
    found = {"line": to_arviz(linear_model(), exact_draws(x, y, 1000), (x, y))}
    flat = exact_draws(0 * x, y, 1000)
    wide = BayesianModel(nn.Linear(2, 1, dtype=x.dtype), likelihood=likelihoods.Normal(scale=1.0))
    found["constant"] = to_arviz(wide, {**flat, "weight": 0 * flat["weight"]}, (x, y))
    exactly = {"round_to": "none"} if "round_to" in inspect.signature(arviz.compare).parameters else {}
    table = arviz.compare(found, **exactly)
    assert list(table.index) == ["line", "constant"]
    difference = elpd(arviz.loo(found["line"])) - elpd(arviz.loo(found["constant"]))
    assert difference > 5
    column = "elpd_diff" if "elpd_diff" in table else "elpd_loo"
    shown = abs(float(table[column].iloc[1]) - (0.0 if column == "elpd_diff" else float(table[column].iloc[0])))
    assert shown == pytest.approx(difference, rel=0.05, abs=0.5)


def test_inputs_by_their_names():
    """A dict of what the network takes, and batches of a place for each, are the tuple of them."""
    u, v, y = torch.randn(9, 2), torch.randn(9, 3), torch.randn(9)
    model = BayesianModel(torch.nn.Bilinear(2, 3, 1), likelihood=likelihoods.Normal(scale=0.5))
    draws = {name: torch.randn(20, *shape) for name, shape in model.latent_shapes.items()}
    expected = to_arviz(model, draws, ((u, v), y))["log_likelihood"]["obs"].values
    for data in ({"input2": v, "input1": u, "y": y}, {"x": (u, v), "y": y}, (u, v, y)):
        np.testing.assert_array_equal(to_arviz(model, draws, data)["log_likelihood"]["obs"].values, expected)


def test_labels():
    torch.manual_seed(0)
    x, y = torch.randn(20, 2), torch.randint(3, (20,))
    model = BayesianModel(nn.Linear(2, 3), likelihood=likelihoods.Categorical())
    draws = {"weight": torch.randn(150, 3, 2), "bias": torch.randn(150, 3)}
    idata = to_arviz(model, draws, (x, y), coords={"class": ["a", "b", "c"]})
    logits = torch.einsum("soi,bi->sbo", draws["weight"], x) + draws["bias"][:, None]
    torch.testing.assert_close(values(idata, "functions", "outputs"), logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values(idata, "functions", "mean"), logits.softmax(-1), atol=1e-5, rtol=1e-5)
    ll = logits.log_softmax(-1)[:, torch.arange(20), y]
    torch.testing.assert_close(values(idata, "log_likelihood", "obs"), ll, atol=1e-5, rtol=1e-5)
    assert idata["functions"]["mean"].sel({"class": "b"}).shape == (1, 150, 20)
    assert set(np.unique(idata["posterior_predictive"]["obs"].values)) <= {0, 1, 2}


def test_several_outputs_with_gaps_and_weights():
    torch.manual_seed(0)
    x, y = torch.randn(12, 2), torch.randn(12, 2)
    y[0, 1] = torch.nan
    y[1] = torch.nan
    weight = torch.ones(12)
    weight[2], weight[3] = 2.0, 0.0
    model = BayesianModel(nn.Linear(2, 2), likelihood=likelihoods.Normal(scale=0.5), missing="ignore")
    draws = {"weight": 0.1 * torch.randn(200, 2, 2), "bias": 0.1 * torch.randn(200, 2)}
    idata = to_arviz(model, draws, {"x": x, "y": y, "weight": weight})
    f = torch.einsum("soi,bi->sbo", draws["weight"], x) + draws["bias"][:, None]
    each = dist.Normal(f, 0.5).log_prob(torch.nan_to_num(y))
    expected = torch.where(torch.isnan(y), 0.0, each).sum(-1) * weight
    kept = [0, 2, *range(4, 12)]  # the others say nothing: no target, weight 0
    expected = expected[:, kept]
    torch.testing.assert_close(values(idata, "log_likelihood", "obs"), expected, atol=1e-5, rtol=1e-5)
    for group in ("log_likelihood", "observed_data", "posterior_predictive"):
        assert idata[group]["row"].values.tolist() == kept
    assert np.argwhere(np.isnan(idata["observed_data"]["obs"].values)).tolist() == [[0, 1]]
    assert dict(idata["posterior_predictive"]["obs"].sizes) == {"chain": 1, "draw": 200, "row": 10, "output": 2}
    assert idata["functions"]["mean"].sizes["row"] == 12
    assert np.array_equal(idata["constant_data"]["weight"].values, weight.numpy())
    assert idata.attrs["log_likelihood"] == "of each row, times its weight, without missing targets"


def test_loo_with_a_weight_leaves_out_all_copies():
    """A row of weight 2 is two rows that are left out together: in closed form their joint predictive density."""
    x, y = line(12)
    x2, y2 = torch.cat([x, x[:1]]), torch.cat([y, y[:1]])
    weight = torch.ones(12, dtype=x.dtype)
    weight[0] = 2.0
    m, c, _ = posterior_of_line(x[1:], y[1:])
    row = torch.cat([x[0], torch.ones(1, dtype=x.dtype)])
    joint = dist.MultivariateNormal((row @ m).expand(2), row @ c @ row + SCALE**2 * torch.eye(2, dtype=x.dtype))
    draws = exact_draws(x2, y2, 40_000)
    idata = to_arviz(linear_model(), draws, {"x": x, "y": y, "weight": weight}, functions=False)
    ll = values(idata, "log_likelihood", "obs")[:, 0]
    ratios = (-ll).exp()
    error = float(ratios.std() / ratios.mean()) / math.sqrt(len(ll))
    assert error < 0.02
    assert abs(float(-ratios.mean().log() - joint.log_prob(y[:1].expand(2)))) < 4 * error


def test_noise_and_exposure_of_rows():
    torch.manual_seed(0)
    x, noise = torch.randn(8, 2), torch.rand(8) + 0.1
    draws = {"weight": torch.randn(60, 1, 2), "bias": torch.randn(60, 1)}
    f = torch.einsum("soi,bi->sbo", draws["weight"], x).squeeze(-1) + draws["bias"]
    y = torch.randn(8)
    model = BayesianModel(nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=1.0, per_row=True))
    idata = to_arviz(model, draws, {"x": x, "y": y, "noise": noise}, prior=5)
    expected = dist.Normal(f, noise).log_prob(y)
    torch.testing.assert_close(values(idata, "log_likelihood", "obs"), expected, atol=1e-4, rtol=1e-4)
    assert np.array_equal(idata["constant_data"]["noise"].values, noise.numpy())
    counts, exposure = torch.poisson(torch.full((8,), 2.0)), torch.rand(8) + 0.5
    model = BayesianModel(nn.Linear(2, 1), likelihood=likelihoods.Poisson(exposure=True))
    idata = to_arviz(model, draws, {"x": x, "y": counts, "exposure": exposure})
    expected = dist.Poisson(f.exp() * exposure).log_prob(counts)
    torch.testing.assert_close(values(idata, "log_likelihood", "obs"), expected, atol=1e-3, rtol=1e-3)


# ------------------------------------------------------------------ where draws come from


def test_chains_stay_apart_and_divergences_are_told():
    x, y = line(20)
    model = linear_model()
    mcmc = MCMC(NUTS(model), num_samples=60, warmup_steps=60, num_chains=1, disable_progbar=True)
    mcmc.run(x, y)
    one = to_arviz(model, mcmc, (x, y))
    assert dict(one["posterior"]["weight"].sizes) == {"chain": 1, "draw": 60, "weight_dim_0": 1, "weight_dim_1": 2}
    torch.testing.assert_close(values(one, "posterior", "weight"), mcmc.get_samples()["weight"])
    assert one.attrs["draws_of"] == "NUTS, 1 chain"
    # Two chains without two processes: what Pyro's object keeps of them.
    mcmc._samples = {name: torch.cat([value, value + 0.001]) for name, value in mcmc._samples.items()}
    mcmc.num_chains = 2
    mcmc._diagnostics = [{"divergences": []}, {"divergences": [3, 59]}]
    idata = to_arviz(model, mcmc, (x, y))
    assert dict(idata["log_likelihood"]["obs"].sizes) == {"chain": 2, "draw": 60, "row": 20}
    for chain in range(2):
        w = idata["posterior"]["weight"].values[chain, :, 0]
        b = idata["posterior"]["bias"].values[chain]
        f = w @ x.numpy().T + b
        assert np.allclose(idata["functions"]["mean"].values[chain], f)
    diverging = idata["sample_stats"]["diverging"].values
    assert diverging.shape == (2, 60)
    assert np.argwhere(diverging).tolist() == [[1, 3], [1, 59]]
    table = arviz.summary(idata, var_names=["weight"])
    assert "r_hat" in table


def test_chains_of_draws_by_site():
    x, y = line()
    draws = exact_draws(x, y, 80)
    idata = to_arviz(linear_model(), draws, (x, y), num_chains=4)
    assert idata["posterior"]["bias"].shape == (4, 20, 1)
    assert np.array_equal(idata["posterior"]["bias"].values.reshape(80, 1), draws["bias"].numpy())
    with pytest.raises(ArgumentError, match="num_chains: is 3, and there are 80 draws"):
        to_arviz(linear_model(), draws, (x, y), num_chains=3)
    with pytest.raises(ArgumentError, match="an MCMC object knows its chains"):
        to_arviz(linear_model(), [nn.Linear(2, 1, dtype=x.dtype)] * 2, (x, y), num_chains=2)


def test_a_guide_of_pyro_an_ensemble_and_importance_weights():
    x, y = line()
    model = linear_model()
    guide = AutoNormal(model)
    guide(x, y)
    idata = to_arviz(model, guide, (x, y), num_samples=40)
    assert idata["posterior"]["weight"].shape == (1, 40, 1, 2)
    assert "AutoNormal, an approximation" in idata.attrs["draws_of"]
    networks = [nn.Linear(2, 1, dtype=x.dtype) for _ in range(3)]
    idata = to_arviz(model, networks, (x, y))
    assert torch.equal(values(idata, "posterior", "bias")[1], networks[1].bias.detach())
    assert idata.attrs["draws_of"] == "an ensemble of 3 networks"


def test_importance_weights_bring_a_guide_to_the_posterior():
    x, y = line()
    mean, covariance, _ = posterior_of_line(x, y)
    model = linear_model()

    def guide(x, y):
        wide = 1.5 * covariance.diagonal().sqrt()
        pyro.sample("weight", dist.Normal(mean[None, :2], wide[:2]).to_event(2))
        pyro.sample("bias", dist.Normal(mean[2:], wide[2:]).to_event(1))

    weighted = importance_sample(model, guide, (x, y), 4000)
    idata = to_arviz(model, weighted, (x, y), num_samples=2000)
    assert idata.attrs["guide_k_hat"] == weighted.smoothed.k_hat
    std = values(idata, "posterior", "weight").std(0)[0]
    # Resampled: as uncertain as ess draws.
    error = 4 / math.sqrt(2 * weighted.smoothed.ess)
    assert torch.allclose(std / covariance.diagonal().sqrt()[:2], torch.ones(2).double(), atol=error)


# ------------------------------------------------------------------ plain Pyro models


def program(x, y, groups):
    with pyro.plate("group", 3):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    mean = pyro.deterministic("mean", level[groups] + x @ slope)
    pyro.factor("penalty", -0.1 * slope.square().sum())
    with pyro.plate("data", len(x)), poutine.mask(mask=torch.arange(len(x)) != 2):
        pyro.sample("y", dist.Normal(mean, 1.5), obs=y)


def test_a_plain_model_by_its_sites():
    torch.manual_seed(0)
    x, y, groups = torch.randn(9, 2), torch.randn(9), torch.arange(9) % 3
    guide = AutoNormal(program)
    guide(x, y, groups)
    idata = to_arviz(program, guide, (x, y, groups), num_samples=300, prior=30)
    level, slope = values(idata, "posterior", "level"), values(idata, "posterior", "slope")
    mean = level[:, groups] + slope @ x.T
    expected = dist.Normal(mean, 1.5).log_prob(y)
    kept = [row for row in range(9) if row != 2]
    expected = expected[:, kept]
    assert idata["observed_data"]["data"].values.tolist() == kept
    torch.testing.assert_close(values(idata, "log_likelihood", "y"), expected)
    torch.testing.assert_close(values(idata, "functions", "mean"), mean)
    assert idata["log_likelihood"]["y"].dims == ("chain", "draw", "data")
    assert idata["posterior"]["level"].dims == ("chain", "draw", "group")
    assert set(idata["log_likelihood"].data_vars) == {"y"}
    assert set(idata["constant_data"].data_vars) == {"arg_0", "arg_2"}
    prior = values(idata, "prior", "level")[:, groups] + values(idata, "prior", "slope") @ x.T
    noise = (values(idata, "prior_predictive", "y") - prior[:, kept]) / 1.5
    assert float(noise.var()) == pytest.approx(1.0, abs=4 * math.sqrt(2 / noise.numel()))
    assert elpd(arviz.loo(idata)) < 0


def test_a_plain_model_that_lacks_draws_or_data():
    x, y, groups = torch.randn(9, 2), torch.randn(9), torch.arange(9) % 3
    with pytest.raises(ArgumentError, match=r"no draws of the model's sites \['slope'\]"):
        to_arviz(program, {"level": torch.zeros(4, 3)}, (x, y, groups))
    with pytest.raises(ArgumentError, match="has no observed sites"):
        to_arviz(program, {"level": torch.zeros(4, 3)}, (x, None, groups))
    with pytest.raises(ArgumentError, match="have shape"):
        to_arviz(program, {"level": torch.zeros(4, 2), "slope": torch.zeros(4, 2)}, (x, y, groups))
    with pytest.raises(ArgumentError, match="different numbers of draws"):
        to_arviz(program, {"level": torch.zeros(4, 3), "slope": torch.zeros(5, 2)}, (x, y, groups))
    with pytest.raises(ArgumentError, match="batch_size: is for networks"):
        to_arviz(program, {"level": torch.zeros(4, 3)}, (x, y, groups), batch_size=3)

    def minibatch(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y), subsample_size=2) as rows:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])

    with pytest.raises(ArgumentError, match="2 of 9 rows"):
        to_arviz(minibatch, {"mu": torch.zeros(4)}, (y,))


# ------------------------------------------------------------------ options and versions


def test_what_is_kept_of_the_weights(regression, monkeypatch):
    x, y, model, _, _ = regression
    draws = exact_draws(x, y, 30)
    rms = to_arviz(model, draws, (x, y), weights="rms", functions=False, inputs=False)
    expected = draws["weight"].flatten(1).square().mean(1).sqrt()
    assert np.allclose(rms["posterior"]["weight.rms"].values[0], expected.numpy())
    assert groups_of(rms).isdisjoint({"functions", "constant_data"})
    some = to_arviz(model, draws, (x, y), weights=["bi*"])
    assert list(some["posterior"].data_vars) == ["bias"]
    monkeypatch.setattr(_variables, "_MOST_NUMBERS", 89)
    auto = to_arviz(model, draws, (x, y))
    assert auto.attrs["weights"] == "rms"
    monkeypatch.setattr(_variables, "_MOST_NUMBERS", 90)
    assert to_arviz(model, draws, (x, y)).attrs["weights"] == "all"
    with pytest.raises(ArgumentError, match="no pattern of any of the sites"):
        to_arviz(model, draws, (x, y), weights=["none*"])


def test_latents_of_the_likelihood_are_always_kept():
    x, y = line(10, torch.float32)
    model = BayesianModel(nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=dist.Gamma(2.0, 4.0)))
    draws = {"weight": torch.randn(9, 1, 2), "bias": torch.randn(9, 1), "likelihood.scale": torch.rand(9) + 0.1}
    for weights in ("rms", ["0.none"]):
        kept = to_arviz(model, draws, (x, y), weights=weights)["posterior"]
        assert torch.equal(torch.as_tensor(kept["likelihood.scale"].values[0]), draws["likelihood.scale"])


def test_batches_give_the_same(regression):
    x, y, model, _, _ = regression
    draws = exact_draws(x, y, 30)
    one, other = to_arviz(model, draws, (x, y)), to_arviz(model, draws, (x, y), batch_size=7)
    assert np.allclose(one["log_likelihood"]["obs"].values, other["log_likelihood"]["obs"].values)


def test_wrong_options_are_named(regression):
    x, y, model, guide, _ = regression
    with pytest.raises(ArgumentError, match="weights: is 'some'"):
        to_arviz(model, guide, (x, y), weights="some")
    with pytest.raises(ArgumentError, match="has no targets"):
        to_arviz(model, guide, (x,))
    with pytest.raises(ArgumentError, match="num_samples"):
        to_arviz(model, guide, (x, y), num_samples=0)
    with pytest.raises(ArgumentError, match=r"coords: \['rows'\] are no dimensions"):
        to_arviz(model, guide, (x, y), coords={"rows": range(30)})
    with pytest.raises(ArgumentError, match="coords: has 3 labels of 'row'; pass 30"):
        to_arviz(model, guide, (x, y), coords={"row": range(3)})
    with pytest.raises(ArgumentTypeError, match="model: is an int"):
        to_arviz(3, guide, (x, y))
    with pytest.raises(ArgumentTypeError, match="functions"):
        to_arviz(model, guide, (x, y), functions="yes")


def test_a_tempered_posterior_is_warned_of():
    x, y = line()
    with pytest.warns(BayeshnetWarning, match="loo and compare take their draws for those of kl_weight=1") as caught:
        idata = to_arviz(linear_model(kl_weight=0.1), exact_draws(x, y, 20), (x, y))
    assert caught[0].filename == __file__
    assert idata.attrs["kl_weight"] == 0.1


def test_the_class_is_that_of_the_version(regression, monkeypatch):
    """Without ``InferenceData``, as in ArviZ 1.x, the same groups are a tree of xarray; here with either version."""
    x, y, model, _, _ = regression
    draws = exact_draws(x, y, 20)
    installed = to_arviz(model, draws, (x, y))
    monkeypatch.setattr(_variables, "_arviz", types.SimpleNamespace())
    tree = to_arviz(model, draws, (x, y))
    assert isinstance(tree, xarray.DataTree)
    assert isinstance(installed, vars(arviz).get("InferenceData", xarray.DataTree))
    assert groups_of(tree) == groups_of(installed)
    assert tree["posterior"]["weight"].equals(installed["posterior"]["weight"])
    assert tree.attrs == installed.attrs
