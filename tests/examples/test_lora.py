"""The program on low-rank adapters runs, and its digits are turned."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import matplotlib as mpl
import pytest
import torch

mpl.use("Agg")

import matplotlib.pyplot as plt

pytest.importorskip("sklearn")

ROOT = Path(__file__).parents[2]


def program():
    spec = importlib.util.spec_from_file_location("lora", ROOT / "examples" / "lora.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)  # the program, as its own master, sets it
    plt.close("all")


def test_quick_run(tmp_path, monkeypatch, capsys):
    out = tmp_path / "new" / "picture.png"
    monkeypatch.setattr("sys.argv", ["lora", "--steps", "3", "--samples", "5", "--out", str(out)])
    program().main()
    printed = capsys.readouterr().out
    for name in ("pretrained", "adapters, point", "adapters, Bayesian"):
        (line,) = [line for line in printed.splitlines() if line.startswith(name + " ")]
        numbers = torch.tensor([float(part) for part in line.removeprefix(name).split()])
        assert len(numbers) == 3
        assert bool(torch.isfinite(numbers).all())
    assert plt.imread(out).shape[:2] == (360, 990)


def test_digits_are_turned_and_chosen():
    made = program()
    image = torch.arange(64.0).reshape(1, 64)
    assert torch.equal(made.turned(image).reshape(8, 8), torch.arange(64.0).reshape(8, 8).rot90())
    _, y, _, _ = made.digits(0)
    assert y[made.few_of_each(y, 3)].bincount().tolist() == [3] * 10
    probs = torch.tensor([[0.95, 0.05], [0.85, 0.15]])
    found = made.scores(probs, torch.tensor([0, 1]))
    assert found["error"] == pytest.approx(0.5)
    assert found["ece"] == pytest.approx(0.5 * 0.05 + 0.5 * 0.85)
