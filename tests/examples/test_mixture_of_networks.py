"""The program with two networks and a label that was not recorded: it runs, and its data are what it says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import matplotlib as mpl
import pyro
import pytest
import torch
from pyro import poutine

mpl.use("Agg")

import matplotlib.pyplot as plt

PATH = Path(__file__).parents[2] / "examples" / "mixture_of_networks.py"


@pytest.fixture
def program():
    spec = importlib.util.spec_from_file_location("mixture_of_networks", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)  # the program, as its own master, sets it
    plt.close("all")


def test_quick_run(program, tmp_path, monkeypatch, capsys):
    out = tmp_path / "new" / "picture.png"
    monkeypatch.setattr("sys.argv", [PATH.name, "--steps", "3", "--samples", "20", "--out", str(out)])
    program.main()
    printed = capsys.readouterr().out
    for name, count in (("one network, no labels", 3), ("two networks, labels summed out", 4)):
        (line,) = [line for line in printed.splitlines() if line.startswith(name)]
        scores = torch.tensor([float(part) for part in line.removeprefix(name).split() if part != "-"])
        assert len(scores) == count
        assert bool(torch.isfinite(scores).all())
    assert plt.imread(out).shape[:2] == (405, 1080)


def test_the_data_are_of_two_curves(program):
    t, power, on = program.generated(20_000, seed=3)
    assert torch.equal(power, program.generated(20_000, seed=3)[1])
    mean = program.true_base(t[:, 0]) + on * program.true_extra(t[:, 0])
    z = (power - mean) / program.NOISE
    assert abs(float(z.mean())) < 4 / 20_000**0.5
    assert abs(float(z.square().mean()) - 1.0) < 4 * (2 / 20_000) ** 0.5
    assert abs(float(on.mean()) - program.SHARE) < 4 * (0.21 / 20_000) ** 0.5


def test_a_reading_with_the_heater_never_takes_less(program):
    pyro.set_rng_seed(0)
    trace = poutine.trace(program.two_networks).get_trace(torch.linspace(0.0, 34.0, 50).unsqueeze(-1))
    assert bool((trace.nodes["on"]["value"] > trace.nodes["off"]["value"]).all())
