"""The pages on training and on resuming a fit."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch

import bayeshnet
from bayeshnet import fit
from bayeshnet.errors import ConvergenceWarning

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def run(page, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of an early stopping in forty steps
        for block in blocks(page):
            exec(block, names)
    return names


def test_training(tmp_path, monkeypatch, capsys):
    names = run("training.md", {}, tmp_path, monkeypatch)
    assert (tmp_path / "fit.csv").exists()
    assert names["history"].best_step in names["history"].validation_steps
    printed = capsys.readouterr().out
    assert "batch=100 of 500 rows" in printed
    assert "PosteriorPrior(81 latents, moments of 500 draws)" in printed


def test_resuming(tmp_path, monkeypatch):
    first = run("resuming.md", {}, tmp_path, monkeypatch)
    again = run("resuming.md", {}, tmp_path, monkeypatch)
    assert again["history"].resumed_from == 30
    assert again["history"].losses == first["history"].losses
    for one, other in zip(first["guide"].parameters(), again["guide"].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("page", ["training.md", "resuming.md", "gotchas.md"])
def test_the_names_on_a_page_exist(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    for name in set(re.findall(r"`(?:bayeshnet\.)?([A-Z]\w+|fit|predict|save|load|start_from)\(", text)):
        assert hasattr(bayeshnet, name) or hasattr(bayeshnet.training, name) or name == "Trace_ELBO", name
    for option in set(re.findall(r"`(\w+)=`", text)) | {"checkpoint"}:
        assert option in fit.__doc__ or option in bayeshnet.BayesianModel.__doc__, option
