"""``benchmarks/refine.py``: its floor, and the whole program on a problem that is drawn from at once."""

from __future__ import annotations

import json
import math

import pytest
import torch

NAMES = ("_posterior_nuts", "posterior_quality", "refine")


def test_floor_is_the_distance_of_two_halves(parts):
    generator = torch.Generator().manual_seed(0)
    gold = torch.randn(2000, 50, generator=generator)
    # W1 of two samples of n: E|B(F(x))| integrated, sqrt(2 / n) * sqrt(2 / pi) * int sqrt(F (1 - F)) dx = .0571; its
    # spread over columns is a third of it, and the mean has 50 of them.
    x = torch.linspace(-8.0, 8.0, 4001, dtype=torch.float64)
    cdf = torch.special.ndtr(x)
    expected = math.sqrt(2 / 1000) * math.sqrt(2 / math.pi) * float(torch.trapezoid((cdf * (1 - cdf)).sqrt(), x))
    assert parts["refine"].half_floor(gold) == pytest.approx(expected, rel=0.15)


@pytest.mark.slow
def test_program(parts, monkeypatch, tmp_path):
    nuts = parts["posterior_nuts"]
    settings = nuts.NutsSettings(chains=2, warm_up=60, block=100, max_draws=100)
    monkeypatch.setattr(parts["posterior_quality"], "QUICK", settings)
    out = tmp_path / "out.json"
    parts["refine"].main(["--quick", "--cache", str(tmp_path), "--json", str(out)])
    summary = json.loads(out.read_text(encoding="utf-8"))["summary"]
    keys = ("w1_over_floor", "guide_w1_over_floor", "w1_ratio", "std_ratio", "seconds_over_fit", "rhat")
    assert set(summary) == {f"tiny/{key}" for key in keys}
    assert summary["tiny/w1_ratio"] == pytest.approx(
        summary["tiny/w1_over_floor"] / summary["tiny/guide_w1_over_floor"], rel=1e-6
    )
    assert 0.7 < summary["tiny/std_ratio"] < 1.4  # 200 draws of two short chains, against 500


def test_options_that_have_no_effect_are_refused(parts):
    with pytest.raises(SystemExit):
        parts["refine"].main(["--quick", "--methods", "default"])
