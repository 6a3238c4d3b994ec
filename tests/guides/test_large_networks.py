"""A small ResNet from the guide to the file, by the benchmark of large networks; and the page about them."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

from bayeshnet import AutoHypernet, BayesianModel, families, fit, likelihoods, load_posterior, predict, save

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def networks():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("_large_networks")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def model_of(networks, widths, rows):
    net = networks.ResNet(widths, 1)
    return BayesianModel(net, likelihood=likelihoods.Categorical(), dataset_size=rows, reference_rows=16)


def test_resnet_18_has_11_million_weights(networks):
    assert sum(param.numel() for param in networks.ResNet().parameters()) == 11_173_962


@pytest.mark.slow
def test_a_resnet_from_guide_to_file(networks, tmp_path):
    torch.manual_seed(0)
    widths = (16, 32, 64, 128)
    x, y = networks.images(64, 16)
    model = model_of(networks, widths, 64)
    guide = AutoHypernet(model, example=(x[:40], y[:40]))
    assert guide.latent_dim > 300_000
    assert isinstance(guide.family, families.MeanField)
    assert guide.inducing.num_inducing == 4
    assert guide.num_parameters <= 3 * guide.latent_dim
    made = guide.summary(num_samples=2)
    assert made.inducing_share is not None
    assert made.inducing_share <= 0.1
    assert 0.5 < made.memory_estimated / made.memory_measured < 2.0
    batches = list(zip(x.split(16), y.split(16), strict=True))
    history = fit(model, guide, batches, steps=3, progress=False)
    assert history.num_particles == 5
    assert guide.inducing.num_inducing == 1  # batches of 16 rows
    save(tmp_path / "run", model=model, guide=guide)
    loaded = load_posterior(tmp_path / "run", networks.ResNet(widths, 1))
    draws = []
    for m, g in ((model, guide), (loaded.model, loaded.guide)):
        torch.manual_seed(1)
        draws.append(predict(m, g, x[:4], 3).draws)
    assert torch.equal(*draws)


@pytest.mark.slow
def test_statistics_of_batch_norm_in_parts_are_the_same(networks, monkeypatch):
    torch.manual_seed(0)
    x, y = networks.images(16, 10)
    model = model_of(networks, (4, 8, 8, 8), 16)
    guide = AutoHypernet(model, example=(x, y), family="mean_field", conditional=None)
    found = []
    for most in (2**27, 1):
        monkeypatch.setattr("bayeshnet.models.batch_norm._NUMBERS_AT_ONCE", most)
        torch.manual_seed(1)
        found.append(predict(model, guide, x[:4], 5).draws)
    torch.testing.assert_close(*found)


def test_the_page(tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs/large_networks.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(block, names)
    printed = capsys.readouterr().out
    assert "family=MeanField() (102 k latents: more than 100,000; the hypernetwork would have" in printed
    assert "num_inducing=6 (a tenth of a step of 64 rows)" in printed
    assert "num_particles=15" in printed
    assert names["points"].inducing.num_inducing == 30
    assert names["ranks"].num_parameters == pytest.approx(6 * 102_001, rel=0.01)
    assert names["loaded"].guide.inducing.num_inducing == 6
    hypernet = families.Hypernet(noise_dim=4, hidden_layers=[8])
    guide = AutoHypernet(names["model"], example=(names["x"][:64], names["y"][:64]), family=hypernet, conditional=None)
    assert guide.num_parameters / guide.latent_dim == pytest.approx(14, abs=0.1)
