"""A checkpoint that version 0.1 has written, by ``checkpoints/make_0_1.py``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from bayeshnet import (
    AutoHypernet,
    AutoHypernetDelta,
    AutoHypernetNormal,
    BayesianModel,
    families,
    fit,
    likelihoods,
    load,
    predict,
    priors,
    save,
)
from bayeshnet.errors import CheckpointError
from bayeshnet.training._old_keys import renamed_state

FOLDER = Path(__file__).parent / "checkpoints"
FILE = FOLDER / "version_0_1"
EXPECTED = json.loads((FOLDER / "version_0_1_expected.json").read_text())
DTYPE = torch.float64
X, TARGETS = (torch.tensor(EXPECTED[name], dtype=DTYPE).unsqueeze(-1) for name in ("x", "y"))

SMALL = families.Hypernet(noise_dim=3, hidden_layers=[4])
GUIDES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "default": (AutoHypernet, {}),
    "all_layers": (AutoHypernet, {"conditional": "all", "num_inducing": 5}),
    "hypernet": (AutoHypernet, {"family": SMALL, "conditional": None}),
    "units": (AutoHypernet, {"family": families.BlockGaussian(num_components=2)}),
    "mean_field": (AutoHypernet, {"family": "mean_field"}),
    "low_rank": (AutoHypernet, {"family": "low_rank", "conditional": None}),
    "mixture": (AutoHypernet, {"family": families.Mixture("low_rank", 2), "conditional": None}),
    "hypernets": (AutoHypernet, {"family": families.Mixture(SMALL, 2), "conditional": None}),
    "normal": (AutoHypernetNormal, {}),
    "delta": (AutoHypernetDelta, {}),
}


def rebuilt(name: str) -> tuple[BayesianModel, Any]:
    """Model and guide with other parameters than those of the file."""
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).to(DTYPE)
    six = torch.tensor(6.0, dtype=DTYPE)
    model = BayesianModel(
        net,
        prior=priors.Normal(scale="fan_in", learn=True),
        likelihood=likelihoods.Normal(scale=dist.Gamma(six, six)),
        target_shape=(1,),
    )
    kind, options = GUIDES[name]
    return model, kind(model, example=(X, TARGETS), **options)


def means(model, guide):
    torch.manual_seed(1)
    return predict(model, guide, X, num_samples=64).mean.flatten()


def test_every_guide_of_the_file_is_tried():
    assert {"model", *GUIDES} == set(json.loads(FILE.with_suffix(".json").read_text())["modules"])
    assert set(EXPECTED["mean"]) == set(GUIDES)


@pytest.mark.parametrize("name", GUIDES)
def test_it_predicts_what_it_did_and_trains_on(name, tmp_path):
    model, guide = rebuilt(name)
    before = {key: value.clone() for key, value in guide.state_dict().items()}
    fresh = means(model, guide)
    load(FILE, model=model, **{name: guide})
    expected = torch.tensor(EXPECTED["mean"][name], dtype=DTYPE)
    torch.testing.assert_close(means(model, guide), expected, rtol=0.0, atol=1e-9)
    assert float((fresh - expected).abs().max()) > 1e-3  # it was another guide before
    assert any(not torch.equal(value, before[key]) for key, value in guide.state_dict().items())
    # Written again, it is a file of now.
    save(tmp_path / "again", model=model, guide=guide)
    assert json.loads((tmp_path / "again.json").read_text())["format"] == 2
    other, second = rebuilt(name)
    load(tmp_path / "again", model=other, guide=second)
    assert torch.equal(means(other, second), means(model, guide))
    history = fit(model, guide, (X, TARGETS), 3, num_particles=2, progress=False)
    assert all(math.isfinite(loss) for loss in history.losses)
    assert not torch.equal(means(model, guide), means(other, second))


def test_the_model_alone():
    model, _ = rebuilt("delta")
    load(FILE, model=model)
    factors = model.state_dict()["learned_scales.log_factor"]
    assert bool((factors != 0.0).all())


def test_a_guide_of_another_kind_is_refused():
    model, guide = rebuilt("mean_field")
    with pytest.raises(CheckpointError, match=r"low_rank: differs in structure.*'inducing"):
        load(FILE, model=model, low_rank=guide)
    with pytest.raises(CheckpointError, match="is an AutoHypernet, and the file has one of class AutoHypernetDelta"):
        load(FILE, delta=guide)


def test_keys_are_renamed_where_they_belong():
    """In a guide that is a part of something else too; but nothing that only happens to have the name."""

    class Holder(nn.Module):
        def __init__(self, guide):
            super().__init__()
            self.body = nn.Linear(1, 1)
            self.guide = guide

    _, guide = rebuilt("mean_field")
    holder = Holder(guide)
    now = holder.state_dict()
    old = {
        key.replace("guide.family.", "guide.family.").replace(
            "guide.tempering_exponent", "guide.candidate_power"
        ): value
        for key, value in now.items()
    }
    assert "body.weight" in old
    assert "guide.family.loc" in old
    found = renamed_state(holder, old)
    assert found.keys() == now.keys()
    assert all(found[key] is value for key, value in now.items())
    assert renamed_state(nn.Linear(1, 1), {"body.x": X}) == {"body.x": X}


def test_a_class_with_another_name_now(tmp_path):
    _, guide = rebuilt("mean_field")
    save(tmp_path / "part", part=guide.family)
    file = tmp_path / "part.json"
    description = json.loads(file.read_text())
    assert description["modules"] == {"part": "MeanField"}
    file.write_text(json.dumps({**description, "format": 1, "modules": {"part": "MeanFieldBody"}}))
    _, other = rebuilt("mean_field")
    with torch.no_grad():
        guide.family.loc += 1.0
    assert not torch.equal(other.family.loc, guide.family.loc)
    load(tmp_path / "part", part=guide.family)
    assert torch.equal(guide.family.loc, other.family.loc)  # of the same seed
