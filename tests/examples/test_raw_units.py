"""The two programs on generated data in original units: they run, and their data are what they say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import matplotlib as mpl
import pytest
import torch

mpl.use("Agg")

import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[2]


def program(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)  # the programs, as their own masters, set it
    plt.close("all")


@pytest.mark.parametrize(
    ("name", "likelihoods", "size"),
    [
        ("heteroscedastic", ("heteroscedastic", "constant noise"), (360, 1170)),
        ("counts", ("Poisson", "negative binomial"), (360, 990)),
    ],
)
def test_quick_run(name, likelihoods, size, tmp_path, monkeypatch, capsys):
    out = tmp_path / "new" / "picture.png"
    monkeypatch.setattr("sys.argv", [name, "--steps", "3", "--samples", "20", "--out", str(out)])
    program(name).main()
    printed = capsys.readouterr().out
    for likelihood in likelihoods:
        (line,) = [line for line in printed.splitlines() if line.startswith(likelihood)]
        scores = torch.tensor([float(part) for part in line.removeprefix(likelihood).split()])
        assert len(scores) >= 4
        assert bool(torch.isfinite(scores).all())
    assert plt.imread(out).shape[:2] == size


def test_power_has_the_spread_that_is_drawn():
    made = program("heteroscedastic")
    wind, power = made.generated(20_000, seed=3)
    assert torch.equal(power, made.generated(20_000, seed=3)[1])
    mean, std = made.true_power(wind[:, 0])
    z = (power - mean) / std
    assert abs(float(z.mean())) < 4 / 20_000**0.5
    assert abs(float(z.square().mean()) - 1) < 4 * (2 / 20_000) ** 0.5
    assert float(std.max() / std.min()) > 5


def test_counts_have_the_variance_of_a_negative_binomial():
    made = program("counts")
    x, y = made.generated(40_000, seed=3)
    assert torch.equal(y, y.round())
    rate = made.true_rate(*x.T)
    ratio = (y - rate).square() / (rate + rate.square() * made.DISPERSION)
    # Standard error from the sample itself: the squares are heavy-tailed.
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / 40_000**0.5
    assert abs(float(((y - rate) / (rate + rate.square() * made.DISPERSION).sqrt()).mean())) < 4 / 40_000**0.5
