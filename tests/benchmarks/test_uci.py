"""``benchmarks/uci.py``: folders, units, the baseline, the whole program."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

NAMES = ("_uci_data", "_uci_generated", "_uci_methods", "uci")


@pytest.fixture(scope="module")
def data(parts):
    return parts["uci_data"]


def rows(num=40):
    """One input matters, one is constant; targets far from standardised ones."""
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.standard_normal(num) * 5 + 3, np.full(num, 7.0)])
    return x, 100.0 + 20.0 * np.sin(x[:, 0] / 5) + rng.standard_normal(num)


@pytest.fixture
def folder(data, tmp_path):
    x, y = rows()
    order = np.arange(40)
    data.write_set(tmp_path / "bostonHousing", x, y, [(order[8:], order[:8]), (order[:30], order[30:])])
    data.write_set(tmp_path / "yacht", x, y, [(order[8:], order[:8])])
    (tmp_path / "nothing").mkdir()
    return tmp_path


def test_names_resolve_by_their_beginning(data, folder):
    assert data.resolve(folder, "boston").name == "bostonHousing"
    assert data.resolve(folder, "YACHT").name == "yacht"
    with pytest.raises(SystemExit, match="'energy' is none of bostonHousing, yacht"):
        data.resolve(folder, "energy")
    data.write_set(folder / "bostonOther", *rows(), [(np.arange(30), np.arange(30, 40))])
    with pytest.raises(SystemExit, match="'boston' fits several: bostonHousing, bostonOther"):
        data.resolve(folder, "boston")
    data.write_set(folder / "boston", *rows(), [(np.arange(30), np.arange(30, 40))])
    assert data.resolve(folder, "boston").name == "boston"  # the exact name counts first


def test_read_what_was_written(data, folder):
    x, y = rows()
    read = data.read_set(folder / "bostonHousing")
    np.testing.assert_allclose(read.x, x)
    np.testing.assert_allclose(read.y, y)
    assert [(len(train), len(test)) for train, test in read.splits] == [(32, 8), (30, 10)]
    # Columns by their index, integers that were written as floats.
    (folder / "yacht" / "index_features.txt").write_text("1.000000000000000000e+00\n")
    (folder / "yacht" / "index_target.txt").write_text("0.000000000000000000e+00\n")
    swapped = data.read_set(folder / "yacht")
    np.testing.assert_allclose(swapped.x, x[:, 1:])
    np.testing.assert_allclose(swapped.y, x[:, 0])


def test_damaged_folders(data, folder):
    (folder / "yacht" / "index_test_0.txt").write_text("99\n")
    with pytest.raises(SystemExit, match="indices beyond"):
        data.read_set(folder / "yacht")
    (folder / "yacht" / "index_test_0.txt").unlink()
    with pytest.raises(SystemExit, match="cannot be read"):
        data.read_set(folder / "yacht")
    (folder / "yacht" / "index_train_0.txt").unlink()
    with pytest.raises(SystemExit, match="has 0 splits"):
        data.read_set(folder / "yacht")


def test_statistics_are_those_of_the_training_rows(data, folder):
    split = data.read_set(folder / "bostonHousing").split(0)
    x, y = rows()
    assert (split.y_mean, split.y_std) == pytest.approx((y[8:].mean(), y[8:].std()))
    torch.testing.assert_close(split.x.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(split.x[:, 0].std(correction=0), torch.ones(()))
    torch.testing.assert_close(split.x_test[:, 1], torch.zeros(8))  # constant: centred, not divided by 0
    expected = (x[:8, 0] - x[8:, 0].mean()) / x[8:, 0].std()
    torch.testing.assert_close(split.x_test[:, 0], torch.tensor(expected, dtype=torch.float32))


def test_figures_are_in_original_units(data, parts, folder):
    """Against scipy's density of the targets as they are in the file."""
    split = data.read_set(folder / "bostonHousing").split(0)
    y_test = rows()[1][:8]
    means, noise = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)), 0.3
    log_prob = parts["uci_methods"]._mixture(means, split.y_test, torch.tensor(noise**-2, dtype=torch.float64))
    original = split.y_mean + split.y_std * means.double().numpy()
    densities = stats.norm(original, split.y_std * noise).pdf(y_test)
    assert split.log_likelihood(log_prob) == pytest.approx(np.log(densities.mean(0)).mean(), abs=1e-5)
    error = original.mean(0) - y_test
    assert split.rmse(means.mean(0)) == pytest.approx(math.sqrt((error**2).mean()), rel=1e-5)


def test_part_of_the_training_rows_as_test_rows(data, folder):
    split = data.read_set(folder / "bostonHousing").split(0)
    held = data.fraction_split(split, 0.25, 3)
    assert (len(held.x), len(held.x_test)) == (24, 8)
    original = torch.cat([held.y, held.y_test]).double() * held.y_std + held.y_mean
    np.testing.assert_allclose(np.sort(original.numpy()), np.sort(rows()[1][8:]), rtol=1e-5)
    assert torch.equal(data.fraction_split(split, 0.25, 3).y, held.y)
    assert not torch.equal(data.fraction_split(split, 0.25, 4).y, held.y)


def test_summary(parts):
    outcome = parts["uci_methods"].Outcome
    runs = {
        "bayeshnet": [outcome(-1.0, 2.0, 5.0, {}), outcome(-2.0, 4.0, 7.0, {})],
        "mc_dropout": [outcome(-2.0, 3.0, 1.0, {}), outcome(-2.5, 3.0, 1.0, {})],
    }
    summary = parts["uci"].summarise("set", runs)
    assert (summary["set/ll"], summary["set/rmse"], summary["set/seconds"]) == (-1.5, 3.0, 6.0)
    assert summary["set/ll_se"] == pytest.approx(0.5)
    assert (summary["set/mc_dropout_ll"], summary["set/mc_dropout_rmse"]) == (-2.25, 3.0)
    assert (summary["set/mc_dropout_ll_gain"], summary["set/mc_dropout_ll_gain_se"]) == pytest.approx((0.75, 0.25))
    single = parts["uci"].summarise("set", {"bayeshnet": runs["bayeshnet"][:1]})
    assert single["set/ll_se"] is None


def test_mc_dropout_learns(data, parts):
    """A curve with noise 1: the error ends near the noise, and so does the noise level that is chosen."""
    x, y = rows(400)
    split = data.standardised(x[100:], y[100:], x[:100], y[:100])
    settings = parts["uci_methods"].Settings(dropout_steps=1500, dropout_draws=300)
    run = parts["uci_methods"].mc_dropout(split, 0, settings)
    assert 0.7 < run.rmse < 1.5
    assert 0.7 < run.notes["noise"] * split.y_std < 1.5
    # What the true curve and noise would score is about -1.42.
    assert run.ll > -1.9
    assert run.notes["rate"] in [pytest.approx(rate) for rate in parts["uci_methods"].DROPOUT_RATES]


def test_generated_sets(parts):
    for name, make in parts["uci_generated"].GENERATED.items():
        made, again = make(), make()
        assert made.name == name
        assert 1600 <= len(made.x) <= 10_000
        assert len(made.splits) == 20
        np.testing.assert_array_equal(made.y, again.y)
        for train, test in made.splits:
            assert len(test) == len(made.x) // 10 + (len(made.x) % 10 > 5)
            np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(len(made.x)))
    assert set(parts["uci_generated"].GENERATED["grades"]().y) == {3.0, 4.0, 5.0, 6.0, 7.0, 8.0}


def test_program_on_generated_sets(parts, tmp_path):
    out = tmp_path / "out.json"
    parts["uci"].main(["--generated", "--sets", "grades", "--quick", "--methods", "bayeshnet", "--json", str(out)])
    assert math.isfinite(json.loads(out.read_text())["summary"]["grades/ll"])
    with pytest.raises(SystemExit, match="other not known; generated are grades"):
        parts["uci"].main(["--generated", "--sets", "grades,other"])


def test_program(parts, folder, tmp_path, capsys):
    out = tmp_path / "out.json"
    parts["uci"].main(["--data-dir", str(folder), "--sets", "boston", "--quick", "--json", str(out)])
    summary = json.loads(out.read_text())["summary"]
    for key in ("ll", "rmse", "mc_dropout_ll", "mc_dropout_rmse"):
        assert math.isfinite(summary[f"boston/{key}"])
    assert "boston split 0 bayeshnet" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--splits: is 0"):
        parts["uci"].main(["--data-dir", str(folder), "--splits", "0"])
    with pytest.raises(SystemExit, match="is no folder"):
        parts["uci"].main(["--data-dir", str(folder / "missing")])
