"""The machinery of ``benchmarks/posterior_quality.py``: distances, NUTS and its cache, methods, the whole program."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from pyro import poutine

from bayeshnet import batched_forward

NAMES = ("_posterior_problems", "_posterior_nuts", "_posterior_methods", "_posteriors", "posterior_quality")


@pytest.fixture(scope="module")
def problems(parts):
    return parts["posterior_problems"]


def linear(problems, *, outputs=1, noise=0.5):
    """A problem without a hidden layer: its posterior is known."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 2))
    y = rng.standard_normal((8, outputs))
    if noise is None:
        y = (x[:, 0] > 0).astype(float)
    return problems.Problem("linear", (2, outputs), "tanh", (0.8, 0.5), noise, x, y, x[:3], x, y)


def exact(problem):
    """Mean and covariance of the functions of a linear regression at the grid."""
    phi, at = (np.hstack([x, np.ones((len(x), 1))]) for x in (problem.x_train, problem.x_grid))
    precision = phi.T @ phi / problem.noise**2 + np.diag([0.8**-2, 0.8**-2, 0.5**-2])
    mean = np.linalg.solve(precision, phi.T @ problem.y_train[:, 0] / problem.noise**2)
    return at @ mean, at @ np.linalg.solve(precision, at.T)


# ---------------------------------------------------------------------- distances


def test_w1_of_gaussians(parts):
    measures = parts["posteriors"]
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(20_000, 2, generator=generator)
    b = torch.randn(20_000, 2, generator=generator)
    # The error of a mean of 20,000 is 0.007; four of the difference of two of them are 0.04.
    assert measures.w1(a, b) < 0.04
    assert measures.w1(a, b + 3.0) == pytest.approx(3.0, abs=0.04)
    # E|z| (s - 1) for spreads 1 and s.
    assert measures.w1(a, 2.0 * b) == pytest.approx(math.sqrt(2 / math.pi), abs=0.04)
    assert measures.std_ratio(a, torch.cat([b[:, :1], 4.0 * b[:, 1:]], dim=1)) == pytest.approx(0.5, rel=0.03)
    assert measures.rmse_mean(a, b + torch.tensor([0.0, 2.0])) == pytest.approx(math.sqrt(2.0), abs=0.04)


def test_medians_count_what_was_never_reached(parts):
    measures = parts["posteriors"]

    def run(w1, curve, elbo=None):
        return measures.Run(w1, 1.0, 0.0, 0.0, elbo, 10, 2.0, None, torch.zeros(1), curve)

    base = [run(0.5, [(2.0, 0.5)], (-1.0, 0.1))] * 3
    fast = run(0.1, [(0.4, 0.6), (0.8, 0.5), (1.0, 0.1)])
    never = run(0.6, [(1.0, 0.6)])
    figures = measures.summarise([fast, fast, never], base)
    assert figures["seconds_ratio"] == 0.4
    assert figures["w1_ratio"] == 0.2
    assert figures["elbo"] is None
    assert measures.summarise([never, never, fast], base)["seconds_ratio"] is None
    assert measures.summarise(base, base) == pytest.approx(
        {"w1_ratio": 1, "std_ratio": 1, "rmse_mean": 0, "elbo": -1, "test_ll": 0, "seconds_ratio": 1}
    )


def test_the_clock_leaves_out_looks_and_random_numbers(parts):
    clock = parts["posteriors"]._Clock()
    state = torch.get_rng_state()

    def work():
        torch.randn(2_000_000).sort()
        return 1.0

    assert clock.pause(work) == 1.0
    assert clock.paused > 0
    assert clock() < clock.paused
    assert torch.equal(state, torch.get_rng_state())


# ---------------------------------------------------------------------- problems


@pytest.mark.parametrize("name", ["toy2", "moons", "multi", "relu"])
def test_potential_is_that_of_the_model(parts, problems, name):
    """Against the log joint of the Bayesian network that the guides are fitted to, and autograd."""
    problem = problems.SELF_SAMPLED["toy2" if name == "relu" else name]()
    if name == "relu":
        problem = dataclasses.replace(problem, activation="relu")
    potential = parts["posterior_nuts"].Potential(problem)
    generator = torch.Generator().manual_seed(0)
    z = 0.3 * torch.randn(2, problem.num_weights, dtype=torch.float64, generator=generator)
    model = problem.model().double()
    x, y = problem.train_data(torch.float64)

    def log_joint(whitened):
        given = poutine.condition(model, data={"weights": whitened * problem.scale})
        return poutine.trace(given).get_trace(x, y).log_prob_sum()

    values, grads = zip(*(potential.value_and_gradient(part) for part in z), strict=True)
    # Constants drop out of the difference of two points. The model keeps its noise in float32.
    assert float(values[0] - values[1]) == pytest.approx(-float(log_joint(z[0]) - log_joint(z[1])), rel=1e-5)
    point = z[0].clone().requires_grad_()
    outputs = batched_forward(problem.network().double(), (point * problem.scale).unsqueeze(0), x)
    (0.5 * point.square().sum() - problem.log_likelihood(outputs, y).sum()).backward()
    assert torch.allclose(grads[0], point.grad, rtol=1e-9, atol=1e-9)
    by_hand = parts["posterior_methods"].forward(problem, (point * problem.scale).unsqueeze(0), x)[1]
    assert torch.allclose(by_hand, outputs)


def test_file_of_draws(parts, problems, tmp_path):
    arrays = {
        "x_train": np.zeros((5, 2)),
        "y_train": np.zeros(5),
        "x_grid": np.zeros((4, 2)),
        "f_grid": np.ones((7, 4)),
        "x_test": np.zeros((3, 2)),
        "y_test": np.zeros(3),
        "f_test": np.zeros((7, 3)),
    }
    np.savez(
        tmp_path / "mine.npz", **arrays, noise=0.2, hidden=6, activation="relu", prior_std_w1_b1_w2_b2=[1, 2, 3, 4]
    )
    gold = problems.from_file(tmp_path / "mine.npz")
    assert gold.problem.name == "mine"
    assert gold.problem.widths == (2, 6, 1)
    assert gold.problem.scale.tolist() == [1.0] * 12 + [2.0] * 6 + [3.0] * 6 + [4.0]
    assert gold.grid.shape == (7, 4)
    # Log density of 0 under N(0, 0.2).
    expected = -math.log(0.2) - 0.5 * math.log(2 * math.pi)
    assert parts["posteriors"].nuts_test_ll(gold) == pytest.approx(expected, rel=1e-6)


def test_key_depends_on_all_of_the_problem(problems):
    problem = problems.SELF_SAMPLED["moons"]()
    assert problem.key == problems.SELF_SAMPLED["moons"]().key
    others = [
        dataclasses.replace(problem, activation="relu"),
        dataclasses.replace(problem, prior_std=(1.0, *problem.prior_std[1:])),
        dataclasses.replace(problem, x_train=problem.x_train + 1e-9),
        dataclasses.replace(problem, y_train=1 - problem.y_train),
    ]
    assert len({problem.key, *(other.key for other in others)}) == 5


# ---------------------------------------------------------------------- NUTS


def test_nuts_of_a_linear_regression_and_its_cache(parts, problems, tmp_path):
    nuts = parts["posterior_nuts"]
    problem = linear(problems)
    settings = nuts.NutsSettings(chains=2, warm_up=60, block=150, max_draws=300, min_ess=100.0)
    told: list[str] = []
    gold = nuts.gold_standard(problem, tmp_path, settings, told.append)
    mean, covariance = exact(problem)
    std = np.sqrt(np.diag(covariance))
    # At least 100 effective draws: four standard errors of a mean are 0.4 std; of a spread, 0.28.
    assert gold.info["ess"] > 100
    assert np.all(np.abs(gold.grid.mean(0).numpy() - mean) < 0.4 * std)
    assert np.all(np.abs(gold.grid.std(0).numpy() / std - 1) < 0.28)
    assert gold.info["rhat"] < 1.05
    assert gold.info["divergences"] == 0
    assert told

    told.clear()
    again = nuts.gold_standard(problem, tmp_path, settings, told.append)
    assert not told
    assert torch.equal(again.grid, gold.grid)
    assert torch.equal(again.test, gold.test)
    assert again.info == gold.info
    other = dataclasses.replace(problem, noise=0.4)
    assert nuts.cached(other, tmp_path, settings) is None
    assert nuts.cached(problem, tmp_path, nuts.QUICK) is None
    # An entry under the right name whose key is another one's.
    nuts._place(problem, tmp_path, settings).rename(nuts._place(other, tmp_path, settings))
    assert nuts.cached(other, tmp_path, settings) is None


# ---------------------------------------------------------------------- methods


def hidden_problem(problems, noise):
    base = linear(problems, noise=noise, outputs=1 if noise else 2)
    return dataclasses.replace(base, widths=(2, 4, 1 if noise else 2), prior_std=(1.0, 1.0, 0.8, 0.5))


def test_laplace_of_a_regression_is_the_exact_conditional(parts, problems):
    """Its draws against Bayesian linear regression on the features."""
    methods = parts["posterior_methods"]
    problem = hidden_problem(problems, 0.5)
    method = methods.METHODS["laplace_last"](problem)
    method.train(methods.Schedule(3000), lambda: None)
    mean, factor = method.last_layer()
    features = methods.forward(problem, method.z * method.scale, method.x)[0][0].detach().double()
    phi = torch.cat([features, torch.ones(8, 1)], dim=1)
    precision = phi.T @ phi / 0.25 + torch.diag(torch.tensor([0.8] * 4 + [0.5], dtype=torch.float64).pow(-2))
    assert torch.allclose(factor @ factor.T, precision, rtol=1e-6)
    posterior_mean = torch.linalg.solve(precision, phi.T @ method.y.double()[:, 0] / 0.25)
    # At the joint mode the last layer is at its conditional mode; Adam leaves the rest.
    assert torch.allclose(mean[0], posterior_mean, atol=0.02)
    draws = method.outputs(method.x, 20_000)[..., 0].double()
    std = (phi @ torch.linalg.solve(precision, phi.T)).diagonal().sqrt()
    assert torch.allclose(draws.std(0), std, rtol=0.03)  # four standard errors are 0.02
    assert torch.allclose(draws.mean(0), phi @ mean[0], atol=float(4 * std.max() / 20_000**0.5))


def test_laplace_of_a_classification_is_the_hessian(parts, problems):
    methods = parts["posterior_methods"]
    problem = hidden_problem(problems, None)
    method = methods.METHODS["laplace_last"](problem)
    mean, factor = method.last_layer()
    features = methods.forward(problem, method.z * method.scale, method.x)[0][0].detach().double()
    phi = torch.cat([features, torch.ones(8, 1)], dim=1)
    scale = torch.tensor([0.8] * 4 + [0.5], dtype=torch.float64)

    def energy(weights):
        log_likelihood = problem.log_likelihood((phi @ weights.T).unsqueeze(0), method.y).sum()
        return 0.5 * (weights / scale).square().sum() - log_likelihood

    hessian = torch.autograd.functional.hessian(energy, mean).reshape(10, 10)
    assert torch.allclose(factor @ factor.T, hessian, rtol=1e-6, atol=1e-8)


def test_schedule_is_flat_and_then_falls(parts):
    methods = parts["posterior_methods"]
    schedule = methods.Schedule(2600, flat_within=0.3)
    assert [schedule.factor(step) for step in (0, 1999)] == [1.0, 1.0]
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2600, generator=generator).tolist()
    rising = [-0.1 * step + loss for step, loss in enumerate(noisy)]
    assert not any(schedule.stop(rising[:step]) for step in range(1, 2600))
    assert schedule.flat_at == 2000  # what is left is needed for the decay
    assert not schedule.converged
    assert schedule.stop(rising)
    assert schedule.factor(2599) == pytest.approx(0.02, abs=1e-3)
    assert 0.4 < schedule.factor(2300) < 0.6
    falling_elbo = methods.Schedule(12_000, flat_within=0.3)
    ends = next(step for step in range(1, 2601) if falling_elbo.stop([0.01 * i for i in range(step)]))
    assert falling_elbo.converged
    assert ends == 2600


# ---------------------------------------------------------------------- all of it


def test_program(parts, problems, monkeypatch, tmp_path, capsys):
    """A run with every kind of method on a regression that NUTS draws at once."""
    program, nuts = parts["posterior_quality"], parts["posterior_nuts"]
    monkeypatch.setitem(
        problems.SELF_SAMPLED, "tiny", lambda: dataclasses.replace(hidden_problem(problems, 0.5), name="tiny")
    )
    monkeypatch.setattr(program, "QUICK", nuts.NutsSettings(chains=2, warm_up=20, block=20, max_draws=20))
    budget = parts["posteriors"].Budget(
        steps=20, map_steps=20, max_steps=20, checkpoint=10, checkpoint_draws=50, draws=100, elbo_particles=20
    )
    monkeypatch.setattr(program, "QUICK_BUDGET", budget)
    out, picture = tmp_path / "out.json", tmp_path / "picture.png"
    program.main(["--quick", "--cache", str(tmp_path), "--json", str(out), "--out", str(picture)])
    summary = json.loads(out.read_text(encoding="utf-8"))["summary"]
    figures = {"w1_ratio", "std_ratio", "rmse_mean", "elbo", "test_ll", "ms_ratio", "seconds_ratio"}
    methods = parts["posterior_methods"].METHODS
    assert set(summary) == {f"tiny/{method}/{key}" for method in methods for key in figures}
    assert summary["tiny/AutoNormal/w1_ratio"] == summary["tiny/AutoNormal/ms_ratio"] == 1
    assert [method for method in methods if summary[f"tiny/{method}/elbo"] is None] == [
        "ensemble",
        "dropout",
        "laplace_last",
    ]
    assert picture.stat().st_size > 5000
    assert "r-hat" in capsys.readouterr().out


def test_program_says_what_problems_there_are(parts):
    with pytest.raises(SystemExit, match="nothing not known; there are toy2, moons, moons2, multi"):
        parts["posterior_quality"].main(["--problems", "nothing"])
