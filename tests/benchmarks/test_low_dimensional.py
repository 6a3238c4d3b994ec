"""The measure of ``benchmarks/low_dimensional.py``, and a reduced version of what it shows."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

NAMES = ("_low_dimensional_targets", "low_dimensional", "_low_dimensional_picture")


@pytest.fixture(scope="module")
def targets(parts):
    return parts["low_dimensional_targets"]


def gaussian(targets, std=1.0):
    def model():
        pyro.sample("w", dist.Normal(torch.zeros(2), std).to_event(1))

    return targets.Target(model, 6.0, "a Gaussian")


def test_kl_of_gaussians(targets):
    """A shifted and narrowed Gaussian against N(0, I): 1/2 (s^2 - 1 - log s^2 + m^2) per coordinate."""
    torch.manual_seed(0)
    grid = targets.Grid(gaussian(targets))
    assert grid.evidence == pytest.approx(1.0, abs=1e-6)
    mean, std = torch.tensor([0.5, -1.0]), torch.tensor([0.6, 1.2])
    kl, error = targets.grid_kl(mean + std * torch.randn(1_000_000, 2), grid)
    exact = float((0.5 * (std.square() - 1 - 2 * std.log() + mean.square())).sum())
    # A cell of 0.05 hides (0.05 / std)^2 / 24 of the difference of the curvatures: less than 3e-4 here.
    assert abs(kl - exact) < 4 * error + 3e-4
    nothing, error = targets.grid_kl(torch.randn(1_000_000, 2), grid)
    # What the correction leaves of the bias is of the order K / (12 N c), with K < 8000 cells used and c > 1 draws in
    # nearly all of them.
    assert abs(nothing) < 4 * error + 8000 / 12e6


def test_draws_outside_and_not_finite_count(targets):
    grid = targets.Grid(gaussian(targets))
    torch.manual_seed(0)
    draws = torch.randn(10_000, 2)
    inside = targets.grid_kl(draws, grid)[0]
    draws[:1000] = 50.0
    far = targets.grid_kl(draws, grid)[0]
    draws[:1000] = math.nan
    assert far == targets.grid_kl(draws, grid)[0]
    # A tenth in a cell of probability 1e-9 or less: 0.1 log(0.1 / 1e-9) = 1.8.
    assert far > inside + 1.5


def test_targets_are_normalised_by_their_own_models(targets):
    """Evidence of the three densities is 1; of the others it agrees with importance sampling from the prior."""
    torch.manual_seed(0)
    for name in ("banana", "cross", "two_modes"):
        assert targets.Grid(targets.TARGETS[name]).evidence == pytest.approx(1.0, abs=1e-4)
    for name, std in (("labels", 2.0), ("linear_net", 1.5), ("tanh_net", 1.5)):
        target = targets.TARGETS[name]
        w = std * torch.randn(400_000, 2)
        log_prior = dist.Normal(0.0, std).log_prob(w).sum(1)
        likelihood = (target.log_joint(w) - log_prior).double().exp()
        error = float(likelihood.std()) / math.sqrt(len(w))
        assert abs(targets.Grid(target, bins=120).evidence - float(likelihood.mean())) < 4 * error
        # Both signs, or both labels, are the same to the posterior.
        other = w.flip(1) if name == "labels" else -w
        torch.testing.assert_close(target.log_joint(w), target.log_joint(other), rtol=1e-4, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two_modes", "linear_net"])
def test_a_hypernetwork_is_closer_than_gaussians(parts, targets, name):
    """With a fifth of the steps: less than a third of the KL of either."""
    low = parts["low_dimensional"]
    target = targets.TARGETS[name]
    grid = targets.Grid(target)
    kl: dict[str, float] = {}
    for method in ("AutoNormal", "AutoMultivariateNormal", "hypernet"):
        made = low.fitted(target, low.METHODS[method], steps=800, num_draws=200_000, seed=0)
        kl[method], error = targets.grid_kl(made.draws, grid)
        assert error < 0.01
        # The ELBO says the same: no guide claims more than it has, up to the noise of the last steps.
        assert math.log(grid.evidence) - made.elbo > 0.8 * kl[method] - 0.05
    assert kl["hypernet"] < min(kl["AutoNormal"], kl["AutoMultivariateNormal"]) / 3


def test_the_program(parts, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    low = parts["low_dimensional"]
    arguments = ["--quick", "--targets", "cross", "--methods", "AutoNormal", "mixture", "--json", "out.json"]
    monkeypatch.setattr(sys, "argv", ["low_dimensional.py", *arguments, "--out", "densities.png"])
    monkeypatch.setattr(sys, "path", [str(Path(low.__file__).parent), *sys.path])
    monkeypatch.chdir(tmp_path)
    low.main()
    summary = json.loads((tmp_path / "out.json").read_text())["summary"]
    assert set(summary) == {f"cross/{m}/{key}" for m in ("AutoNormal", "mixture") for key in ("kl", "claimed")}
    assert 0 < summary["cross/mixture/kl"] < summary["cross/AutoNormal/kl"]
    assert (tmp_path / "densities.png").stat().st_size > 5000
