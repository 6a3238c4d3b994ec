"""The text classifier: padding changes nothing, and the program runs."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
import torch

from bayeshnet import BayesianModel, likelihoods

mpl.use("Agg")

import matplotlib.pyplot as plt

PROGRAM = Path(__file__).parents[2] / "examples" / "text_classifier.py"


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)  # the program, as its own master, sets it


@pytest.fixture(scope="module")
def program():
    return runpy.run_path(str(PROGRAM))


def test_padding_changes_nothing(program):
    texts, _ = program["sentences"](6, seed=1)
    tokens, mask = program["padded"](texts)
    assert mask.any()
    model = BayesianModel(program["Classifier"](), likelihood=likelihoods.Categorical()).eval()
    draws = {name: 0.3 * torch.randn(3, *shape) for name, shape in model.latent_shapes.items()}
    together = model.conditional((tokens, mask), draws)[0]
    alone = [model.conditional(program["padded"]([text]), draws)[0] for text in texts]
    torch.testing.assert_close(together, torch.cat(alone, dim=1), atol=1e-5, rtol=1e-5)
    assert float(together.std()) > 0.05


def test_strange_sentences_have_words_that_nobody_knows(program):
    texts, _ = program["sentences"](50, seed=2, strange=True)
    known, _ = program["sentences"](50, seed=2)
    assert int((program["padded"](texts)[0] == 1).sum()) > 50
    assert int((program["padded"](known)[0] == 1).sum()) == 0


def test_the_program_runs(tmp_path, monkeypatch, capsys):
    out = tmp_path / "text.png"
    options = ["--epochs", "1", "--sentences", "100", "--samples", "3", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [str(PROGRAM), *options])
    runpy.run_path(str(PROGRAM), run_name="__main__")
    plt.close("all")
    printed = capsys.readouterr().out
    assert out.stat().st_size > 10_000
    assert all(f"\n{name}" in printed for name in ("plain", "Bayesian"))
