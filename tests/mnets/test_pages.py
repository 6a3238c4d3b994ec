"""The page on adapters."""

from __future__ import annotations

import re
from pathlib import Path

import pyro
import torch

DOCS = Path(__file__).parents[2] / "docs"


def test_adapters():
    pyro.set_rng_seed(0)
    names = {}
    for block in re.findall(
        r"```python\n(.*?)```", (DOCS / "adapters.md").read_text(encoding="utf-8"), flags=re.DOTALL
    ):
        exec(block, names)
    assert names["pred"].mean.shape == (40,)
    assert names["model"].net.param_names == ["0.adapter_a", "0.adapter_b", "2.adapter_a", "2.adapter_b"]
    stds = {name: float(prior.stddev.flatten()[0]) for name, prior in names["model"].weight_priors().items()}
    torch.testing.assert_close(list(stds.values()), [3**-0.5, 0.3 / 2**0.5, 32**-0.5, 0.3 / 2**0.5])
    median = names["guide"].median()
    started = names["by_likelihood"].get_parameter("2.adapter_b")
    assert float((median["2.adapter_b"] - started).detach().abs().max()) < 0.1
    net, first = names["pretrained"], names["networks"][0]
    torch.testing.assert_close(net(names["x"]), first(names["x"]))
    assert names["model_of_b"].net.param_names == ["0.adapter_b", "2.adapter_b"]
