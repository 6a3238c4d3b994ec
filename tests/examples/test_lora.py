"""The program that adapts a pretrained network: it runs, and its data are what it says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import matplotlib as mpl
import pytest
import torch

mpl.use("Agg")

import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[2]


@pytest.fixture
def program():
    spec = importlib.util.spec_from_file_location("lora", ROOT / "examples" / "lora.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before = torch.get_num_threads()
    yield module
    torch.set_num_threads(before)  # the program, as its own master, sets it
    plt.close("all")


def test_quick_run(program, tmp_path, monkeypatch, capsys):
    out = tmp_path / "new" / "picture.png"
    monkeypatch.setattr("sys.argv", ["lora", "--steps", "3", "--samples", "5", "--out", str(out)])
    program.main()
    printed = capsys.readouterr().out
    for name in ("pretrained", "LoRA, maximum likelihood", "LoRA, Bayesian A and B", "LoRA, Bayesian B  "):
        (line,) = [line for line in printed.splitlines() if line.startswith(name)]
        accuracy, nll, ece = (float(part) for part in line.removeprefix(name).split())
        assert 0.0 <= accuracy <= 1.0
        assert nll > 0.0
        assert 0.0 <= ece <= 1.0
    assert f"{64 * 65 + 64 * 65 + 65 * 10} frozen weights, 660 of the adapters; 100 examples, 799 held-out" in printed
    assert plt.imread(out).shape[:2] == (360, 900)


def test_sets_of_digits(program):
    x_old, y_old, x, y, x_test, y_test = program.digits(10, seed=1)
    assert x.shape == (100, 1, 8, 8)
    assert len(y_old) + len(y) + len(y_test) == 1797
    assert y.bincount().tolist() == [10] * 10
    upright = x_test.rot90(-1, (2, 3)).flatten(1)
    assert float(torch.cdist(upright, x_old.flatten(1)).min()) > 0.0, "a digit is in two of the sets"


def test_curves_of_known_probabilities(program):
    probs = torch.tensor([[0.9, 0.1]] * 40 + [[0.4, 0.6]] * 40)
    y = torch.cat([torch.zeros(40), torch.zeros(40)]).long()
    confidence, accuracy = program.reliability(probs, y)
    assert confidence == pytest.approx([0.6] * 4 + [0.9] * 4)
    assert accuracy == [0.0] * 4 + [1.0] * 4
    share, right = program.selective(probs, y)
    assert (float(share[-1]), float(right[-1])) == (1.0, 0.5)
    assert float(right[0]) == 1.0
