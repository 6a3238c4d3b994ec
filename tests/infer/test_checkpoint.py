from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from bayeshnet import AutoHypernet, fit, load, predict, save
from bayeshnet.errors import ArgumentError, ArgumentTypeError, CheckpointError
from tests.infer.problems import bnn

ROOT = Path(__file__).parents[2]

RELOAD = """
import torch
from bayeshnet import AutoHypernet, load, predict
from tests.infer.problems import bnn
torch.set_num_threads(1)
model, args = bnn()
guide = AutoHypernet(model, example=args)
load({path!r}, model=model, guide=guide)
torch.manual_seed(7)
pred = predict(model, guide, args[0], num_samples=20)
torch.save((pred.draws, pred.samples), {out!r})
"""


@pytest.mark.slow
def test_a_fresh_process_predicts_the_same_to_the_bit(tmp_path):
    model, args = bnn()
    guide = AutoHypernet(model, example=args)
    fit(model, guide, args, steps=20, progress=False)
    path = str(tmp_path / "deep" / "run")
    save(path, model=model, guide=guide)
    torch.manual_seed(7)
    pred = predict(model, guide, args[0], num_samples=20)
    out = str(tmp_path / "out.pt")
    subprocess.run([sys.executable, "-c", RELOAD.format(path=path, out=out)], check=True, cwd=ROOT)
    draws, samples = torch.load(out)
    assert torch.equal(draws, pred.draws)
    assert torch.equal(samples, pred.samples)


def test_files_hold_every_tensor_and_no_pickle(tmp_path):
    model, args = bnn()
    guide = AutoHypernet(model, example=args)
    file = save(tmp_path / "run.safetensors", guide=guide)
    description = json.loads((tmp_path / "run.json").read_text())
    assert file == tmp_path / "run.safetensors"
    assert description["modules"] == {"guide": "AutoHypernet"}
    assert set(description["tensors"]) == {f"guide.{key}" for key in guide.state_dict()}
    assert b"pickle" not in file.read_bytes()
    assert not file.read_bytes().startswith(b"PK")


def test_shared_memory_is_copied(tmp_path):
    net = nn.Linear(3, 3)
    net.register_buffer("view", net.weight.detach()[0])
    save(tmp_path / "net", net=net)
    other = nn.Linear(3, 3)
    other.register_buffer("view", torch.zeros(3))
    load(tmp_path / "net", net=other)
    assert torch.equal(other.weight, net.weight)


def test_errors(tmp_path):
    net = nn.Linear(3, 2)
    save(tmp_path / "net", net=net)
    with pytest.raises(ArgumentError, match="modules: none"):
        save(tmp_path / "net")
    with pytest.raises(ArgumentTypeError, match="net: is a dict"):
        save(tmp_path / "net", net={})
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing", net=net)
    with pytest.raises(CheckpointError, match="no module of this name; it has"):
        load(tmp_path / "net", guide=net)
    with pytest.raises(CheckpointError, match="a Linear was saved"):
        load(tmp_path / "net", net=nn.Conv1d(3, 2, 1))
    with pytest.raises(CheckpointError, match=r"tensor 'weight' is torch.float32 \(4, 3\)"):
        load(tmp_path / "net", net=nn.Linear(3, 4))
    with pytest.raises(CheckpointError, match="torch.float64"):
        load(tmp_path / "net", net=nn.Linear(3, 2).double())
    save(tmp_path / "bare", net=nn.Linear(3, 2, bias=False))
    with pytest.raises(CheckpointError, match="the file lacks"):
        load(tmp_path / "bare", net=net)
    (tmp_path / "net.safetensors").write_bytes(b"\x08\x00\x00")
    with pytest.raises(CheckpointError, match="is damaged"):
        load(tmp_path / "net", net=net)
    (tmp_path / "net.json").write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        load(tmp_path / "net", net=net)
    (tmp_path / "net.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a description"):
        load(tmp_path / "net", net=net)
