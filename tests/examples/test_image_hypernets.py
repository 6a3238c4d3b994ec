from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
from torch.nn import functional as F

mpl.use("Agg")

import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[2]
MAKERS = ("make_deconv", "make_structured")


@pytest.fixture(scope="module")
def program():
    path = ROOT / "examples" / "image_hypernets.py"
    spec = importlib.util.spec_from_file_location("image_hypernets", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)  # the program, as its own master, sets it
    plt.close("all")


def test_split(program):
    data, again, other = program.load(3), program.load(3), program.load(4)
    assert (len(data.y_train), len(data.y_test)) == (1437, 360)
    assert data.x_train.equal(again.x_train)
    assert not data.x_train.equal(other.x_train)
    # Stratified: a class has 174 to 183 images, a fifth of them 34.8 to 36.6.
    assert set(data.y_test.bincount().tolist()) <= {34, 35, 36, 37}
    assert float(data.x_train.mean()) == pytest.approx(0, abs=1e-4)
    assert float(data.x_train.std()) == pytest.approx(1, abs=1e-4)


def test_validation_never_sees_the_test_part(program):
    data, inner = program.load(0), program.load(0, validate=True)

    def raw(part):  # grey values 0..16: each half has a scale of its own, whose step is known from its darkest pixel
        low, high = float(part.min()), float(part.max())
        return {tuple(row) for row in ((part - low) / (high - low) * 16).round().int().tolist()}

    test, seen = raw(data.x_test), raw(inner.x_train) | raw(inner.x_test)
    assert len(inner.y_train) + len(inner.y_test) == len(data.y_train)
    assert seen == raw(data.x_train)
    assert not test & seen


@pytest.mark.parametrize("maker", MAKERS)
def test_all_weights_are_generated_and_only_the_hypernetwork_is_trained(program, maker):
    torch.manual_seed(0)
    net = program.make_net()
    hnet = getattr(program, maker)(net)
    assert list(net.parameters()) == []
    assert net.internal_params is None
    assert hnet.target_shapes == net.param_shapes == net.hyper_shapes_learned
    assert hnet.num_outputs == net.num_params
    assert program.num_parameters(hnet) < hnet.num_outputs

    x, y = torch.randn(20, 64), torch.arange(20) % 10
    with pytest.raises(ValueError, match="weights"):
        net(x)
    optimizer = torch.optim.Adam(hnet.parameters(), lr=1e-2)
    before = [param.detach().clone() for param in hnet.parameters()]
    for _ in range(3):  # an attention unit starts as the identity: its insides have a gradient from the second step on
        optimizer.zero_grad()
        weights = hnet(cond_id=0)
        for weight in weights:
            weight.retain_grad()
        F.cross_entropy(net(x, weights=weights), y).backward()
        # Biases in front of a batch norm have a gradient of 0 but for rounding.
        assert all(weight.grad is not None for weight in weights)
        optimizer.step()
    assert not [i for i, (a, b) in enumerate(zip(before, hnet.parameters(), strict=True)) if a.equal(b)]


@pytest.mark.parametrize("maker", MAKERS)
def test_it_starts_with_a_sensible_scale(program, maker):
    """The output is finite, and no kernel is dead or far from Kaiming's scale."""
    torch.manual_seed(0)
    net = program.make_net()
    weights = getattr(program, maker)(net)(cond_id=0)
    for weight, meta in zip(weights, net.param_shapes_meta, strict=True):
        if meta["name"] == "weight":
            ratio = float(weight.detach().pow(2).mean()) * weight[0].numel() / 2
            # Not a statistical bound: hyperfan's scale holds on average over draws, and one embedding serves all.
            assert 0.02 < ratio < 50
    assert torch.isfinite(net(torch.randn(20, 64), weights=weights)).all()


def test_hyper_images_are_the_weights(program):
    torch.manual_seed(0)
    hnet = program.make_deconv(program.make_net())
    grid = program.hyper_images(hnet, 6, 7)
    assert grid.shape == (6 * 34 - 2, 7 * 34 - 2)
    assert int(grid.isnan().sum()) == grid.numel() - 6 * 7 * 32 * 32
    flat = hnet(cond_id=0, ret_format="flattened")[0].detach()
    start = (1 * 7 + 2) * 32 * 32  # the image in row 1, column 2
    torch.testing.assert_close(grid[34:66, 68:100].flatten(), flat[start : start + 32 * 32])


def test_quick_run(program, tmp_path, capsys):
    out = tmp_path / "new" / "picture.png"
    program.main(["--quick", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "1437 training and 360 test images" in printed
    rows = [line.split() for line in printed.splitlines()]
    (deconv,) = [row for row in rows if row[:1] == ["ChunkedHDeconv"]]
    (structured,) = [row for row in rows if row[:1] == ["StructuredHMLP"]]
    assert deconv[1:5] == ["43722", "14870", "2.94", "2"]
    assert structured[1:5] == ["43722", "25770", "1.70", "2"]
    assert plt.imread(out).shape[:2] == (585, 1430)


def test_the_page_prints_what_it_says(program):
    """Each block of code in docs/hypernetworks.md, in order, and the numbers that its tables take from the program."""
    page = (ROOT / "docs" / "hypernetworks.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == page.count("```python")
    names = {}
    for code, expected in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, names)
        assert printed.getvalue() == expected, code
    net = program.make_net()
    for maker in MAKERS:
        hnet = getattr(program, maker)(net)
        own = program.num_parameters(hnet)
        row = f"| `{type(hnet).__name__}` | {hnet.num_outputs:,} | {own:,} | {hnet.num_outputs / own:.2f} |"
        assert row in page


@pytest.mark.slow
def test_both_reach_95_percent(program):
    """What the program is for, with the seed of the documentation; 5 minutes are given."""
    seed = 0
    torch.set_num_threads(1)
    data = program.load(seed)
    runs = []
    for maker in MAKERS:
        torch.manual_seed(seed)
        net = program.make_net()
        runs.append(program.train(net, getattr(program, maker)(net), data, 40))
    assert all(run.test_accuracy >= program.TARGET for run in runs), runs
    assert all(len(run.test_curve) == 40 for run in runs)
    assert sum(run.seconds for run in runs) < 300
