"""Chains started from a guide, against what is known exactly."""

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
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from bayeshnet import AutoHypernet, BayesianModel, Refined, fit, likelihoods, predict, priors, refine, save
from bayeshnet.errors import ArgumentError, ArgumentTypeError, CheckpointError, ConvergenceWarning, UsageError
from bayeshnet.sampling import ChEES, LogJoint, nested_rhat


def linear_data(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64) + 0.2
    y = y + 0.3 * torch.randn(20, generator=generator, dtype=torch.float64)
    return x.to(dtype), y.to(dtype)


def linear_model(dtype: torch.dtype = torch.float32) -> BayesianModel:
    return BayesianModel(
        nn.Linear(3, 1).to(dtype), prior=priors.Normal(scale=1.0), likelihood=likelihoods.Normal(scale=0.3)
    )


def exact_posterior() -> tuple[Tensor, Tensor]:
    """Mean and covariance of the weights and the bias."""
    x, y = linear_data(torch.float64)
    phi = torch.cat([x, torch.ones(20, 1, dtype=torch.float64)], dim=1)
    covariance = torch.linalg.inv(phi.T @ phi / 0.09 + torch.eye(4, dtype=torch.float64))
    return covariance @ phi.T @ y / 0.09, covariance


def narrow(_x: Tensor | None = None, _y: Tensor | None = None) -> None:
    """A guide that is off and too narrow."""
    mean, _ = exact_posterior()
    mean = mean.float()
    pyro.sample("weight", dist.Normal(mean[None, :3] + 0.05, 0.02).to_event(2))
    pyro.sample("bias", dist.Normal(mean[3:] - 0.05, 0.02).to_event(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_regression_from_a_wrong_guide(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    refined = refine(linear_model(dtype), narrow, linear_data(dtype), num_draws=8000, num_warmup=60, progress=False)
    draws = torch.cat([refined["weight"].flatten(1), refined["bias"]], dim=1).double()
    mean, covariance = exact_posterior()
    assert refined.converged
    assert len(draws) >= 8000
    assert refined["weight"].dtype == dtype
    # At least a fifth of the draws count, so that means have an error of 1 / 40 of a standard deviation.
    std = covariance.diagonal().sqrt()
    assert ((draws.mean(0) - mean).abs() / std).max() < 4 / 40
    assert (draws.std(0) / std).log().abs().max() < 4 / 40 / math.sqrt(2)
    correlation = torch.corrcoef(draws.T) - covariance / torch.outer(std, std)
    assert correlation.abs().max() < 4 / 40


def hierarchical(y: Tensor) -> None:
    """A positive latent, a vector in a plate, and a scalar."""
    scale = pyro.sample("scale", dist.Gamma(3.0, 3.0))
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("groups", 3):
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + offset, scale), obs=y)


def by_hand(y: Tensor, values: dict[str, Tensor]) -> Tensor:
    total = dist.Gamma(3.0, 3.0).log_prob(values["scale"]) + values["scale"].log()  # Jacobian of exp
    total = total + dist.Normal(0.0, 2.0).log_prob(values["mu"])
    total = total + dist.Normal(0.0, 1.0).log_prob(values["offset"]).sum(-1)
    means = values["mu"].unsqueeze(-1) + values["offset"]
    return total + dist.Normal(means, values["scale"].unsqueeze(-1)).log_prob(y).sum(-1)


def not_vectorisable(y: Tensor) -> None:
    scale = pyro.sample("scale", dist.Gamma(3.0, 3.0))
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    offset = pyro.sample("offset", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    if offset.dim() > 1:
        raise RuntimeError("one at a time")
    pyro.sample("y", dist.Normal(mu + offset, scale).to_event(1), obs=y)


@pytest.mark.parametrize(("model", "vectorised"), [(hierarchical, True), (not_vectorisable, False)])
def test_log_joint_is_that_by_hand(model: Callable[..., Any], vectorised: bool) -> None:
    torch.manual_seed(0)
    y = torch.tensor([0.5, -1.0, 2.0])
    target = LogJoint(model, (y,))
    assert target.vectorised == vectorised
    u = torch.randn(7, target.dim)
    value, gradient = target.with_gradient(u)
    values = target.constrain(u)
    torch.testing.assert_close(value, by_hand(y, values).double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(target.unconstrain(values), u, rtol=1e-4, atol=1e-4)
    step = 1e-2 * torch.randn(7, target.dim)
    moved = target(u + step) - target(u - step)
    torch.testing.assert_close((2 * gradient * step).sum(1).double(), moved, rtol=0.02, atol=2e-4)


def test_latents_beside_the_weights_against_quadrature() -> None:
    """The noise of a known mean: one dimension, integrated by quadrature."""
    y = torch.tensor([0.3, -0.4, 0.9, 0.1, -0.7])

    def model(y: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(0.0, scale), obs=y)

    def guide(y: Tensor) -> None:
        pyro.sample("scale", dist.LogNormal(0.3, 0.1))

    grid = torch.linspace(-4.0, 3.0, 4001, dtype=torch.float64)
    log_p = -0.5 * grid**2 - 5 * grid - 0.5 * y.double().square().sum() * (-2 * grid).exp()
    p = (log_p - log_p.max()).exp()
    mean = (p * grid).sum() / p.sum()
    std = ((p * (grid - mean) ** 2).sum() / p.sum()).sqrt()
    torch.manual_seed(1)
    draws = refine(model, guide, y, num_draws=8000, progress=False)["scale"].double().log()
    assert abs(draws.mean() - mean) / std < 4 / 40
    assert abs((draws.std() / std).log()) < 4 / 40 / math.sqrt(2)


@pytest.mark.slow
def test_network_with_every_kind_of_start_and_prediction(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 24).unsqueeze(1)
    y = (2 * x).sin().squeeze(1)
    net = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1))
    model = BayesianModel(net, likelihood=likelihoods.Normal(scale=dist.LogNormal(-1.5, 0.5)))
    guide = AutoHypernet(model, example=(x, y))
    fit(model, guide, (x, y), 200, progress=False)
    normal = AutoNormal(model)
    normal(x, y)
    options: dict[str, Any] = {"num_chains": 16, "num_draws": 160, "num_warmup": 10, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # far too short, on purpose
        torch.manual_seed(2)
        refined = refine(model, guide, (x, y), max_transitions=10, **options)
        torch.manual_seed(2)
        again = refine(model, guide, (x, y), max_transitions=10, **options)
        others = [refine(model, start, (x, y), max_transitions=10, **options) for start in (normal, refined)]
    assert list(refined) == list(model.latent_shapes)
    assert refined.diagnostics["vectorised"]
    for name, shape in model.latent_shapes.items():
        assert torch.equal(refined[name], again[name]), "a seed reproduces a run"
        for draws in (refined, *others):
            assert draws[name].shape[1:] == shape
            assert bool(torch.isfinite(draws[name]).all())
    assert bool((refined["likelihood.scale"] > 0).all())
    mean = predict(model, refined, x).mean
    assert mean.shape == (24,)
    assert float((mean - y).square().mean().sqrt()) < 0.3
    refined.save(tmp_path / "draws.safetensors")
    loaded = Refined.load(tmp_path / "draws.safetensors")
    assert repr(loaded) == repr(refined)
    assert all(torch.equal(loaded[name], refined[name]) for name in refined)


def test_chains_that_do_not_agree_say_so() -> None:
    def model() -> None:
        pyro.sample(
            "z", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.tensor([-30.0, 30.0]), 1.0))
        )

    torch.manual_seed(0)
    starts = {"z": torch.cat([torch.full((50,), 30.0), torch.full((50,), -30.0)]) + torch.randn(100)}
    # Steps as wide as the modes are apart would cross.
    with pytest.warns(ConvergenceWarning, match="Nested R-hat"):
        refined = refine(model, starts, (), num_draws=100, num_warmup=10, max_transitions=20, progress=False)
    assert not refined.converged


def test_nested_rhat_is_one_plus_between_over_within() -> None:
    draws = torch.zeros(2, 4, 1)
    draws[:, :, 0] = torch.tensor([[0.0, 2.0, 4.0, 6.0], [2.0, 4.0, 6.0, 8.0]])
    # Means of chains 1, 3, 5, 7; of groups 2 and 6: B = 8. Within chains 2, between the chains of a group 2.
    torch.testing.assert_close(nested_rhat(draws, 2), torch.tensor([math.sqrt(1 + 8 / 4)], dtype=torch.float64))


def test_chees_lengthens_trajectories_that_are_too_short() -> None:
    torch.manual_seed(0)
    chains = ChEES(lambda u: (-0.5 * u.double().square().sum(1), -u), torch.randn(64, 20), torch.ones(20))
    for _ in range(150):
        chains.step(adapt=True)
    chains.end_warm_up()
    assert 0.7 < chains.trajectory_length < 4.0  # the best for N(0, I) is pi / 2
    found = torch.stack([chains.step(adapt=False).acceptance.mean() for _ in range(50)])
    assert 0.65 < float(found.mean()) < 0.98


def test_steps_that_overflow_are_no_obstacle() -> None:
    """A guide a thousand times too wide in one of two coordinates, in float32."""

    def model() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(2), torch.tensor([1e-3, 1.0])).to_event(1))

    torch.manual_seed(0)
    draws = {"z": torch.randn(200, 2)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        refined = refine(model, draws, (), num_draws=640, num_warmup=100, max_transitions=20, progress=False)
    assert bool(torch.isfinite(refined["z"]).all())
    assert float(refined["z"][:, 0].std()) < 3e-3
    assert refined.diagnostics["acceptance"] > 0.5


def bad(**changed: Any) -> Callable[[], Any]:
    given: dict[str, Any] = {"model": linear_model(), "guide": narrow, "data": linear_data(), "progress": False}
    given.update(changed)
    return lambda: refine(given.pop("model"), given.pop("guide"), given.pop("data"), **given)


def discrete() -> None:
    pyro.sample("k", dist.Bernoulli(0.5))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (bad(num_chains=2), ArgumentError, "num_chains"),
        (bad(num_draws=1.5), ArgumentTypeError, "num_draws"),
        (bad(max_rhat=1.0), ArgumentError, "max_rhat"),
        (bad(guide=3), ArgumentTypeError, "guide"),
        (bad(guide={"weight": torch.zeros(5, 1, 3)}), ArgumentError, "bias"),
        (bad(guide={"weight": torch.zeros(5, 1, 2), "bias": torch.zeros(5, 1)}), ArgumentError, "weight"),
        (bad(guide={"weight": torch.zeros(5, 1, 3), "bias": torch.zeros(5, 1)}), UsageError, "point"),
        (bad(guide={"weight": torch.zeros(5, 1, 3), "bias": torch.full((5, 1), math.nan)}), ArgumentError, "NaN"),
        (bad(guide={"weight": torch.zeros(5, 1, 3), "bias": torch.zeros(4, 1)}), ArgumentError, "different numbers"),
        (bad(guide={"weight": torch.zeros(0, 1, 3), "bias": torch.zeros(0, 1)}), ArgumentError, "weight"),
        (bad(guide={"weight": 1.0, "bias": torch.zeros(4, 1)}), ArgumentTypeError, "a float"),
        (bad(model=3), ArgumentTypeError, "model"),
        (bad(model=narrow, guide=linear_model()), ArgumentTypeError, "model first"),
        (bad(max_rhat="1"), ArgumentTypeError, "max_rhat"),
        (bad(progress=1), ArgumentTypeError, "progress"),
        (bad(num_draws=10**13), ArgumentError, "num_draws.*memory"),
        (bad(data=[linear_data()]), ArgumentTypeError, "all observations"),
        (bad(data=(linear_data()[0],)), ArgumentError, "y"),
        (bad(model=discrete, guide={"k": torch.zeros(5)}, data=()), ArgumentError, "discrete"),
    ],
)
def test_wrong_input_is_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Refined.load(tmp_path / "none")
    (tmp_path / "broken").write_bytes(b"12345")
    with pytest.raises(CheckpointError, match="damaged"):
        Refined.load(tmp_path / "broken")
    path = tmp_path / "draws"
    Refined({"z": torch.arange(4.0)}, num_chains=2, diagnostics={"rhat": math.inf}).save(path)
    assert Refined.load(path).diagnostics == {"rhat": math.inf}
    whole = bytearray(path.read_bytes())
    whole[-3] ^= 1
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match="damaged"):
        Refined.load(path)
    model = linear_model()
    save(tmp_path / "model", model=model)
    with pytest.raises(CheckpointError, match=r"Refined\.save"):
        Refined.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "draws", [{}, {"a": torch.zeros(4), "b": torch.zeros(6)}, {"a": torch.zeros(5)}, {"a": torch.zeros(())}]
)
def test_draws_that_are_no_draws_of_these_chains(draws: dict[str, Tensor]) -> None:
    with pytest.raises(ArgumentError, match="num_chains=2"):
        Refined(draws, num_chains=2, diagnostics={})


def bounded() -> None:
    """A model without a density at negative values, which its latent may have."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.factor("positive", torch.where(z > 0, 0.0, -torch.inf))


def test_starts_without_a_density_are_left_out() -> None:
    torch.manual_seed(0)
    draws = {"z": torch.cat([torch.full((300,), -1.0), torch.rand(20) + 0.1])}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of trajectories that end beyond the wall
        refined = refine(bounded, draws, (), num_draws=64, num_warmup=10, max_transitions=10, progress=False)
    assert bool((refined["z"] > 0).all())
    with pytest.raises(UsageError, match="density is 0"):
        refine(bounded, {"z": -torch.rand(20)}, (), progress=False)


def test_there_are_as_many_draws_as_asked_for_and_those_of_nuts_are_a_start() -> None:
    def model() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    torch.manual_seed(0)
    chain = MCMC(NUTS(model), num_samples=30, warmup_steps=100, disable_progbar=True)
    chain.run()
    # 63 transitions, more than max_transitions.
    refined = refine(model, chain, (), num_chains=16, num_draws=1000, max_transitions=10, max_rhat=1.1, progress=False)
    assert len(refined["z"]) >= 1000


def test_data_that_the_model_cannot_be_run_on_are_named() -> None:
    def model(y: Tensor) -> None:
        pyro.sample("obs", dist.Normal(pyro.sample("mu", dist.Normal(0.0, 1.0)), y.mean()), obs=y[0])

    draws = {"mu": torch.randn(10)}
    with pytest.raises(ArgumentTypeError, match="data: are no arguments of the model"):
        refine(model, draws, (torch.ones(2), 1), progress=False)
    with pytest.raises(ArgumentError, match=r"NaN in data\[0\]"):
        refine(model, draws, torch.tensor([1.0, math.nan]), progress=False)


def test_a_part_of_the_rows_is_refused() -> None:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 10, subsample=torch.arange(len(y))):
            pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(ArgumentError, match="4 of 10 rows"):
        refine(model, {"mu": torch.randn(10)}, torch.zeros(4), progress=False)


def test_the_page_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "refine.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(block, names)
    assert names["prediction"].mean.shape == (5,)
    assert names["refined"].by_chain()["weight"].shape[0] == 64
    assert names["refined"].converged
