from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import autoguide
from pyro.nn import PyroModule
from torch import nn

from bayeshnet import AutoHypernet, BayesianModel, fit, likelihoods, load, load_posterior, predict, priors, save
from bayeshnet.errors import ArgumentError, ArgumentTypeError, CheckpointError, CheckpointWarning, UsageError
from bayeshnet.training.files import read_file
from tests.problems import bnn
from tests.training.files import with_description

ROOT = Path(__file__).parents[2]
CHECKPOINTS = Path(__file__).parent / "checkpoints"

RELOAD = """
import torch
from bayeshnet import AutoHypernet, load, predict
from tests.problems import bnn
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
    tensors, description = read_file(file)
    assert os.listdir(tmp_path) == ["run.safetensors"]
    assert file == tmp_path / "run.safetensors"
    assert {name: entry["class"] for name, entry in description["modules"].items()} == {
        "guide": "AutoHypernet",
        "model": "BayesianModel",
    }
    states = {"guide": guide.state_dict(), "model": model.state_dict()}
    names = {f"{name}.{key}" for name, state in states.items() for key in state}
    assert {name for name in tensors if not name.startswith("configuration/")} == names
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


def test_modules_without_a_name(tmp_path):
    net = nn.Linear(3, 2)
    with pytest.raises(ArgumentTypeError, match="modules: 1 given without a name, the first is a Linear; pass each by"):
        save(tmp_path / "run", net)
    save(tmp_path / "run", net=net)
    with pytest.raises(ArgumentTypeError, match="modules: 1 given without a name"):
        load(tmp_path / "run", net)


def test_errors(tmp_path):
    net = nn.Linear(3, 2)
    save(tmp_path / "net", net=net)
    with pytest.raises(ArgumentError, match="modules: none"):
        save(tmp_path / "net")
    with pytest.raises(ArgumentTypeError, match="net: is a dict"):
        save(tmp_path / "net", net={})
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing", net=net)
    with pytest.raises(CheckpointError, match=r"guide: is not in the checkpoint; pass .* names \['net'\]"):
        load(tmp_path / "net", guide=net)
    with pytest.raises(CheckpointError, match="net: is a Conv1d, and the file has one of class Linear .*; pass"):
        load(tmp_path / "net", net=nn.Conv1d(3, 2, 1))
    with pytest.raises(CheckpointError, match=r"^net.out_features is 2 in the file and 4 here\. Build it as it was"):
        load(tmp_path / "net", net=nn.Linear(3, 4))
    with (
        pytest.warns(CheckpointWarning, match="out_features"),
        pytest.raises(CheckpointError, match=r"tensor 'weight' is torch.float32 \(4, 3\)"),
    ):
        load(tmp_path / "net", strict=False, net=nn.Linear(3, 4))
    with pytest.raises(CheckpointError, match="torch.float64"):
        load(tmp_path / "net", net=nn.Linear(3, 2).double())
    save(tmp_path / "bare", net=nn.Linear(3, 2, bias=False))
    with pytest.raises(CheckpointError, match="the file lacks"):
        load(tmp_path / "bare", net=net)
    (tmp_path / "net.safetensors").write_bytes(b"\x08\x00\x00")
    with pytest.raises(CheckpointError, match="is damaged"):
        load(tmp_path / "net", net=net)


def guides(model):
    """Pyro's guides that make their parameters at the first call."""
    both = autoguide.AutoGuideList(model)
    both.append(autoguide.AutoNormal(poutine.block(model, expose=["0.weight", "0.bias"])))
    both.append(autoguide.AutoDelta(poutine.block(model, hide=["0.weight", "0.bias"])))
    kinds = (
        autoguide.AutoNormal,
        autoguide.AutoDelta,
        autoguide.AutoDiagonalNormal,
        autoguide.AutoMultivariateNormal,
        autoguide.AutoLowRankMultivariateNormal,
        autoguide.AutoIAFNormal,
    )
    return [both, *(kind(model) for kind in kinds)]


@pytest.mark.parametrize("i", range(7))
def test_guides_that_were_never_called(tmp_path, i):
    """Before: saving wrote nothing, and loading said "the file lacks [], and has besides [...]"."""
    model, args = bnn()
    name = type(guides(model)[i]).__name__
    with pytest.raises(
        UsageError, match=rf"guide: is a guide \({name}\) that was never called.*call it once.*then save"
    ):
        save(tmp_path / "run", guide=guides(model)[i])
    guide, other = guides(model)[i], guides(model)[i]
    guide(*args)
    save(tmp_path / "run", guide=guide)
    with pytest.raises(UsageError, match=r"guide: .* never called.*call it once .*guide\(x, y\), then load"):
        load(tmp_path / "run", guide=other)
    other(*args)
    load(tmp_path / "run", guide=other)
    torch.manual_seed(3)
    expected = predict(model, guide, args[0], 5).draws
    torch.manual_seed(3)
    assert torch.equal(predict(model, other, args[0], 5).draws, expected)


def test_a_hand_written_guide_keeps_its_parameters_elsewhere(tmp_path):
    class Hand(PyroModule):
        def forward(self):
            pyro.param("not_here", torch.zeros(()))

    with pytest.raises(UsageError, match=r"guide: is a Hand without parameters .* Pyro's parameter store"):
        save(tmp_path / "run", guide=Hand())


@pytest.mark.parametrize(
    ("path", "error"),
    [(p, ArgumentError) for p in ("", ".", "..", "folder/", ".safetensors", "run/..", "a\0b")]
    + [(p, ArgumentTypeError) for p in (None, 3, b"run")],
)
def test_paths_that_name_no_file(path, error, tmp_path, monkeypatch):
    """Before: PosixPath('.') has an empty name; '..' wrote ...safetensors."""
    monkeypatch.chdir(tmp_path)
    for act in (save, load):
        with pytest.raises(error, match="^path: is"):
            act(path, net=nn.Linear(1, 1))
    assert not list(tmp_path.iterdir())


def test_paths_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        save(tmp_path / "file" / "run", net=nn.Linear(1, 1))
    with pytest.raises(OSError, match="cannot be written.*choose a shorter one"):
        save(tmp_path / ("a" * 300), net=nn.Linear(1, 1))
    with pytest.raises(ArgumentError, match=r"a.b: has a dot or a slash in its name"):
        save(tmp_path / "run", **{"a.b": nn.Linear(1, 1)})


def holder(tensor):
    module = nn.Module()
    module.register_buffer("held", tensor)
    return module


@pytest.mark.parametrize(
    ("module", "error", "match"),
    [
        (nn.LazyLinear(3), ArgumentError, r"net: 'weight' has no shape yet \(a lazy module\)"),
        (nn.Sequential(nn.Linear(2, 2), nn.LazyBatchNorm1d()), ArgumentError, "net: '1.weight' has no shape yet"),
        (nn.Linear(2, 2, device="meta"), ArgumentError, "net: 'weight' is on the meta device and has no values"),
        (holder(torch.eye(3).to_sparse()), ArgumentTypeError, "net: 'held' is of layout torch.sparse_coo"),
        (holder(torch.zeros(3, dtype=torch.complex128)), ArgumentTypeError, "'held' has dtype torch.complex128"),
    ],
)
def test_tensors_that_cannot_be_saved(module, error, match, tmp_path):
    with pytest.raises(error, match=match):
        save(tmp_path / "net", net=module)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantised_tensors_cannot_be_saved(tmp_path):
    held = torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)
    with pytest.raises(ArgumentTypeError, match="'held' is quantised"):
        save(tmp_path / "net", net=holder(held))


def test_modules_that_cannot_be_filled(tmp_path):
    save(tmp_path / "net", net=nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match="net: 'weight' is on the meta device"):
        load(tmp_path / "net", net=nn.Linear(2, 2, device="meta"))
    with torch.inference_mode():
        made = nn.Linear(2, 2)
        load(tmp_path / "net", net=made)
    with pytest.raises(UsageError, match="net: 'weight' was made under torch.inference_mode"):
        load(tmp_path / "net", net=made)


def learning_model():
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    return BayesianModel(
        net, prior=priors.Normal(scale="fan_in", learn=True), likelihood=likelihoods.Normal(scale=0.5, learn=True)
    )


@pytest.mark.parametrize("make", [lambda m, a: AutoHypernet(m, example=a), lambda m, a: autoguide.AutoNormal(m)])
def test_a_guide_brings_what_its_model_has_learned(tmp_path, make):
    """Before, the guide loaded into a fresh model predicted something else, with a warning at the time of saving."""
    _, (x, y) = bnn()
    model = learning_model()
    guide = make(model, (x, y))
    guide(x, y)
    with torch.no_grad():
        for i, param in enumerate(model.parameters()):
            param.add_(0.1 * (i + 1))
    save(tmp_path / "guide", guide=guide)
    other = learning_model()
    second = make(other, (x, y))
    second(x, y)
    load(tmp_path / "guide", guide=second)
    torch.manual_seed(3)
    expected = predict(model, guide, x, 5)
    torch.manual_seed(3)
    found = predict(other, second, x, 5)
    assert torch.equal(found.std, expected.std)
    assert torch.equal(found.draws, expected.draws)
    alone = learning_model()
    load(tmp_path / "guide", model=alone)
    assert torch.equal(alone.likelihood.log_scale, model.likelihood.log_scale)
    # A model that is passed is the one that is filled.
    third, elsewhere = learning_model(), learning_model()
    of_third = make(third, (x, y))
    of_third(x, y)
    load(tmp_path / "guide", guide=of_third, model=elsewhere)
    assert torch.equal(elsewhere.likelihood.log_scale, model.likelihood.log_scale)
    assert not torch.equal(third.likelihood.log_scale, model.likelihood.log_scale)


def test_model_and_guide_under_each_others_names(tmp_path):
    """Before, the files were written without a word."""
    model, args = bnn()
    guide = AutoHypernet(model, example=args)
    save(tmp_path / "run", model=model, guide=guide)
    for do in (save, load):
        with pytest.raises(ArgumentTypeError, match=r"^model: is a guide \(AutoHypernet\); pass model=model, guide"):
            do(tmp_path / "run", model=guide, guide=model)
        with pytest.raises(ArgumentTypeError, match=r"^guide: is a model \(BayesianModel\); pass model=model, guide"):
            do(tmp_path / "run", guide=model)
    save(tmp_path / "run", first=guide, second=model)  # names of their own


# ---------------------------------------------------------------------- names, numbers, what was there


@pytest.mark.parametrize("name", ["run.v1.5", "run.v1.5.safetensors", "0.001", "a.b.c"])
def test_dots_in_names_stay(name, tmp_path):
    file = save(tmp_path / name, net=nn.Linear(1, 1))
    assert file.name == f"{name.removesuffix('.safetensors')}.safetensors"
    save(tmp_path / "run.v1.6", net=nn.Linear(1, 1))
    assert len(os.listdir(tmp_path)) == 2
    load(tmp_path / name, net=nn.Linear(1, 1))


@pytest.mark.parametrize(("place", "number"), [("weight", "nan"), ("weight", "inf"), ("buffer", "nan")])
def test_numbers_that_are_none_are_warned_of(place, number, tmp_path):
    net = nn.Linear(2, 2)
    net.register_buffer("buffer", torch.full((2,), float("inf")))  # as masks have it
    save(tmp_path / "net", net=net)
    with torch.no_grad():
        getattr(net, place)[0] = float(number)
    with pytest.warns(CheckpointWarning, match=f"^net: is saved with NaN or infinite numbers in .'{place}'"):
        save(tmp_path / "net", net=net)


def test_the_description_of_an_earlier_version_goes_when_it_is_written_over(tmp_path):
    for ending in ("json", "safetensors"):
        shutil.copy(CHECKPOINTS / f"version_0_1.{ending}", tmp_path / f"run.{ending}")
    save(tmp_path / "run", net=nn.Linear(1, 1))
    assert os.listdir(tmp_path) == ["run.safetensors"]
    (tmp_path / "run.json").write_text('{"format": "of somebody else"}')
    save(tmp_path / "run", net=nn.Linear(1, 1))
    assert len(os.listdir(tmp_path)) == 2
    load(tmp_path / "run", net=nn.Linear(1, 1))


def test_forty_random_bit_flips_in_a_real_checkpoint(tmp_path):
    """Before, 21 of 40 loaded wrong numbers."""
    model, args = bnn()
    guide = AutoHypernet(model, example=args)
    file = save(tmp_path / "run", guide=guide)
    whole, chance = file.read_bytes(), random.Random(0)
    before = {key: value.clone() for key, value in guide.state_dict().items()}
    for _ in range(40):
        flipped, place = bytearray(whole), chance.randrange(8 * len(whole))
        flipped[place // 8] ^= 1 << place % 8
        file.write_bytes(flipped)
        with pytest.raises(CheckpointError):
            load(file, guide=guide)
    assert all(torch.equal(value, before[key]) for key, value in guide.state_dict().items())


def test_moves_after_loading(tmp_path):
    model, args = bnn()
    save(tmp_path / "run", guide=AutoHypernet(model, example=args))
    other, _ = bnn()
    guide = AutoHypernet(other, example=args)
    load(tmp_path / "run", guide=guide)
    torch.manual_seed(0)
    single = predict(other, guide, args[0], 500).mean
    other.double()
    guide.double()
    double = args[0].double(), args[1].double()
    torch.manual_seed(0)
    assert predict(other, guide, double[0], 500).mean.dtype == torch.float64
    assert len(fit(other, guide, double, 3, progress=False)) == 3
    assert float((predict(other, guide, double[0], 500).mean - single).abs().mean()) < 1.0


HOSTILE = [
    "{}",
    '{"format": 3}',
    '{"format": 3, "modules": []}',
    '{"format": 3, "modules": {"net": 3}}',
    '{"format": 3, "modules": {"net": {"class": ["Linear"]}}}',
    '{"format": 3, "modules": {"net": {"class": "os.system"}}}',
    '{"format": 3, "modules": {"net": {"class": "Linear", "model": {}}}}',
    '{"format": 3, "modules": {"net": {"class": "Linear", "example": 3}}}',
    '{"format": 3, "modules": {"net": {"class": "Linear"}, "net": {"class": "Linear"}}}',
    '{"format": 3, "modules": {"../net": {"class": "Linear"}}}',
    '{"format": 3, "modules": {"net": {"class": "Linear", "configuration": {"kind": "tensor", '
    '"value": "configuration/7"}}}}',
    '{"format": 4, "modules": {}}',
    '{"format": true, "modules": {}}',
    '{"format": 1e300, "modules": {}}',
    *(
        f'{{"format": 3, "modules": {{"net": {{"class": "Linear", "configuration": {configuration}}}}}}}'
        for configuration in (
            "3",
            '"x"',
            "[]",
            "{}",
            '{"kind": 3}',
            '{"kind": []}',
            '{"kind": "module"}',
            '{"kind": "module", "modules": 3}',
            '{"kind": "module", "modules": {"": 3}}',
            '{"kind": "module", "modules": {"": {"class": {}, "attributes": 3}}}',
            '{"kind": "module", "modules": {"": {"class": "Linear", "attributes": 3}}}',
            '{"kind": "module", "modules": {"": {"class": "Linear", "attributes": {"in_features": '
            '{"kind": "tensor"}}}}}',
            '{"kind": "module", "modules": {"": {"class": "Linear", "attributes": {"in_features": [[[[]]]]}}}}',
            '{"kind": "module", "modules": {"": {"class": "Linear", "frozen": {"a": 1}}}}',
            '{"kind": "module", "modules": {"": {"class": "Linear", "attributes": {}, "frozen": 3, "hooks": "x"}}}',
            '{"kind": "configured", "arguments": 3}',
        )
    ),
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_descriptions_of_modules(text, tmp_path):
    net = nn.Linear(1, 1, bias=False)
    before = net.weight.clone()
    entry = '"dtype":"F32","shape":[1,1],"data_offsets":[0,4]'
    with_description(tmp_path / "run.safetensors", text, f',"net.weight":{{{entry}}}', b"\0\0\0\0")
    with pytest.raises(CheckpointError):
        load(tmp_path / "run", net=net)
    with pytest.raises(CheckpointError):
        load_posterior(tmp_path / "run", nn.Linear(1, 1))
    assert torch.equal(net.weight, before)
