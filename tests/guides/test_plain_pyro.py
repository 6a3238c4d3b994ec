"""The page on plain Pyro."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pyro
import pytest
import torch

from bayeshnet.guides.base import Guide

PAGE = (Path(__file__).parents[2] / "docs" / "plain_pyro.md").read_text(encoding="utf-8")


def blocks():
    return re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_loops_of_the_page_run():
    assert len(blocks()) == 4
    torch.manual_seed(0)
    names = {}
    exec(blocks()[2], names)
    assert names["samples"].shape == (100, 40, 1)
    (decaying,) = [group["params"] for group in names["guide"].param_groups(0.01) if group.get("decay")]
    before = [param.detach().clone() for param in decaying]
    exec(blocks()[3], names)
    assert not any(torch.equal(old, param) for old, param in zip(before, decaying, strict=True))


def test_the_advice_for_discrete_latents_leads_to_a_fit_that_improves():
    pyro.set_rng_seed(0)
    names = {}
    exec(blocks()[0], names)
    guide, losses = names["guide"], torch.tensor(names["losses"])
    assert float(losses[-50:].mean()) < float(losses[:10].mean()) - 20.0
    assert guide.diagnose().values["sign_mismatch"] == 0.0
    draws = guide.sample_posterior(200)
    # Both means are known to 1 / sqrt(30) = 0.18, with a prior that pulls them by a thirtieth.
    assert abs(float(draws["low"].mean()) + 3.0) < 0.9
    assert abs(float(draws["high"].mean()) - 3.0) < 0.9


def test_nuts_in_the_noise_of_the_page_runs():
    pyro.set_rng_seed(0)
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pyro and torch, about each other
        exec("\n".join(blocks()[:2]), names)
    assert names["weights"].shape == (50, 2)


@pytest.mark.parametrize(
    "name", ["begin_fit", "end_fit", "cancel_fit", "param_groups", "clip_norm", "move_to", "get_posterior"]
)
def test_the_names_on_it_exist(name):
    assert name in PAGE
    assert hasattr(Guide, name)
