"""Descriptions that nobody has saved: whatever they say, loading ends in the package's own error."""

from __future__ import annotations

import copy
import random

import pyro.distributions as dist
import torch
from torch import nn

from bayeshnet import AutoHypernet, BayesianModel, families, likelihoods, load_posterior, save
from bayeshnet.errors import CheckpointError
from bayeshnet.training.files import read_file, write_file


def net():
    return nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))


def leaves(value, path=()):
    """Every place in a description."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from leaves(part, (*path, key))


def with_part(value, path, part):
    value = copy.deepcopy(value)
    place = value
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = part
    return value


HOSTILE = [
    None,
    -1,
    10**12,
    2**70,
    1e300,
    "os.system",
    "",
    [],
    {},
    [[]],
    {"kind": "function", "name": "os.system"},
    True,
]
HOSTILE.extend(
    [{"kind": "configured", "of": "guide", "class": "AutoHypernet", "arguments": {}}, [10**6, 10**6], "../../x"]
)


def test_hostile_descriptions_end_in_the_packages_error(tmp_path):
    """Every second place of a description in turn has something else: it is refused, or makes no difference."""
    model = BayesianModel(net(), likelihood=likelihoods.Normal(scale=dist.Gamma(6.0, 6.0)))
    x = torch.randn(30, 2)
    guide = AutoHypernet(model, example=(x, x[:, 0].sin()), family=families.Mixture(families.LowRank(2), 2))
    path = save(tmp_path / "run", guide=guide)
    tensors, description = read_file(path)
    chance = random.Random(0)
    places = [place for place in leaves(description) if place]
    refused = 0
    for place in places[::2]:
        write_file(path, tensors, with_part(description, place, chance.choice(HOSTILE)))
        try:
            load_posterior(path, net())
        except CheckpointError:
            refused += 1
    assert refused > len(places) / 4
