"""Writes the checkpoint of version 0.1 that later versions have to read; it was run once, on commit f217814.

python tests/training/checkpoints/make_0_1.py

It is kept as the record of what is in the files, with the options of then.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from torch import nn

import bayeshnet
from bayeshnet import AutoHypernet, AutoHypernetDelta, AutoHypernetNormal, BayesianModel, likelihoods, priors
from bayeshnet.infer import Mixture

FOLDER = Path(__file__).parent
DTYPE = torch.float64


def options() -> dict[str, dict[str, Any]]:
    """The guides of the checkpoint, by name."""
    return {
        "default": {},
        "all_layers": {"conditional": "all", "num_inducing": 5},
        "hypernet": {"conditional": None, "noise_dim": 3, "hidden_layers": [4]},
        "units": {"body": "units", "num_components": 2},
        "mean_field": {"body": "mean_field"},
        "low_rank": {"body": "low_rank", "conditional": None},
        "mixture": {"body": Mixture(2, of="low_rank"), "conditional": None},
        "hypernets": {"body": Mixture(2, of="hypernet"), "conditional": None, "noise_dim": 3, "hidden_layers": [4]},
    }


def main() -> None:
    torch.manual_seed(0)
    x = torch.linspace(-1.0, 1.0, 12, dtype=DTYPE).unsqueeze(-1)
    y = torch.sin(3.0 * x) + 0.1 * torch.randn_like(x)
    net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).to(DTYPE)
    model = BayesianModel(
        net,
        prior=priors.Normal(scale="fan_in", learn=True),
        likelihood=likelihoods.Normal(scale=dist.Gamma(torch.tensor(6.0, dtype=DTYPE), torch.tensor(6.0, dtype=DTYPE))),
    )
    guides: dict[str, Any] = {name: AutoHypernet(model, example=(x, y), **kw) for name, kw in options().items()}
    guides |= {
        "normal": AutoHypernetNormal(model, example=(x, y)),
        "delta": AutoHypernetDelta(model, example=(x, y)),
    }
    expected: dict[str, list[float]] = {}
    for guide in guides.values():
        bayeshnet.fit(model, guide, (x, y), steps=5, progress=False, num_particles=2)
    for name, guide in guides.items():
        torch.manual_seed(1)
        expected[name] = bayeshnet.predict(model, guide, x, num_samples=64).mean.flatten().tolist()
    bayeshnet.save(FOLDER / "version_0_1", model=model, **guides)
    (FOLDER / "version_0_1_expected.json").write_text(
        json.dumps({"x": x.flatten().tolist(), "y": y.flatten().tolist(), "mean": expected}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
