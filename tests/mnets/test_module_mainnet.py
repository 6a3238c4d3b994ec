from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.layers import BatchNormLayer, ContextModLayer
from bayeshnet.mnets import MLP, MainNetInterface, ModuleMainNet, functional_copy
from tests.mnets.networks import ARCHITECTURES, ByLists, ByRecords, ManyOutputs, Tied, call, leaves

NO_PICKLE = {"parametrised"}  # PyTorch refuses it


def table(module):
    return [(r.extra["dotted_name"], r.name, r.layer) for r in ModuleMainNet(module).param_table]


def close(a, b):
    torch.testing.assert_close(leaves(a), leaves(b), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- the table


def test_table_of_a_cnn():
    net = nn.Sequential(
        nn.Conv1d(1, 2, 3),
        nn.BatchNorm1d(2),
        nn.ConvTranspose1d(2, 3, 3),
        nn.GroupNorm(1, 3),
        nn.PReLU(),
        nn.Linear(6, 1),
    )
    assert table(net) == [
        ("0.weight", "weight", 1),
        ("0.bias", "bias", 1),
        ("1.weight", "bn_scale", 2),
        ("1.bias", "bn_shift", 2),
        ("2.weight", "weight", 3),
        ("2.bias", "bias", 3),
        ("3.weight", "bn_scale", 4),
        ("3.bias", "bn_shift", 4),
        ("4.weight", None, 5),
        ("5.weight", "weight", 6),
        ("5.bias", "bias", 6),
    ]
    transposed = [r.extra.get("transposed", False) for r in ModuleMainNet(net).param_table]
    assert transposed == [False] * 4 + [True] + [False] * 6


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (nn.InstanceNorm2d(3, affine=True), ["bn_scale", "bn_shift"]),
        (nn.LayerNorm(3), ["bn_scale", "bn_shift"]),
        (nn.RMSNorm(3), ["bn_scale"]),
        (BatchNormLayer(3), ["bn_scale", "bn_shift"]),
        (ContextModLayer(3), ["cm_scale", "cm_shift"]),
        (nn.EmbeddingBag(3, 2), ["embedding"]),
        (nn.Bilinear(2, 2, 1), ["weight", "bias"]),
        (nn.RNN(2, 3), ["weight", "weight", "bias", "bias"]),
        (nn.GRUCell(2, 3), ["weight", "weight", "bias", "bias"]),
        (
            nn.MultiheadAttention(4, 1, add_bias_kv=True, kdim=2),
            ["weight", "weight", "weight", "bias", None, None, "weight", "bias"],
        ),
        (ManyOutputs(), [None, None, "weight", "bias"]),
        (nn.Sequential(MLP(2, 1, (), use_context_mod=True)), ["cm_scale", "cm_shift", "weight", "bias"]),
    ],
)
def test_names(module, names):
    net = ModuleMainNet(module)
    assert [r.name for r in net.param_table] == names
    assert net.param_names == [name for name, _ in module.named_parameters()]


def test_names_of_parameters_that_several_modules_have():
    first = nn.Linear(3, 3)
    second = nn.Linear(3, 3)
    second.weight = first.weight
    net = ModuleMainNet(nn.Sequential(first, nn.Tanh(), second))
    assert net.tied_names == {"0.weight": "0.weight", "2.weight": "0.weight"}
    assert ModuleMainNet(nn.Sequential(nn.Linear(3, 1))).tied_names == {}


def test_tied_parameters_once():
    net = ModuleMainNet(Tied())
    assert net.param_names == ["embed.weight", "out.bias"]
    assert len(net.internal_params) == 2
    assert list(net.state_dict()) == ["module.embed.weight", "module.out.bias"]
    weights, x = [torch.randn(shape) for shape in net.param_shapes], torch.tensor([[1, 2]])
    expected = torch.tanh(weights[0][x]) @ weights[0].T + weights[1]
    torch.testing.assert_close(net(x, weights=weights), expected)
    torch.testing.assert_close(ModuleMainNet(Tied(), no_weights=True)(x, weights=weights), expected)
    assert net.module.out.weight is net.module.embed.weight
    fresh = nn.ModuleDict({"a": ModuleMainNet(Tied())})
    fresh.load_state_dict({f"a.{key}": value for key, value in net.state_dict().items()})
    close(fresh["a"](x), net(x))
    assert fresh["a"].module.out.weight is fresh["a"].module.embed.weight


def test_parametrised_modules():
    make, _, _ = ARCHITECTURES["parametrised"]
    assert table(make()) == [
        ("0.bias", "bias", 1),
        ("0.parametrizations.weight.original", "weight", 1),
        ("2.bias", "bias", 2),
        ("2.parametrizations.weight.original0", None, 2),
        ("2.parametrizations.weight.original1", None, 2),
        ("3.bias", "bias", 3),
        ("3.parametrizations.weight.original", "weight", 3),
    ]


# ---------------------------------------------------------------------- forward and state


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_internal_and_external_weights(name):
    make, example, _ = ARCHITECTURES[name]
    module, x = make(), example()
    peer, copied = copy.deepcopy(module), copy.deepcopy(module)
    net, bare = ModuleMainNet(module), ModuleMainNet(copied, no_weights=True)
    weights = [torch.randn(shape) for shape in net.param_shapes]
    named = dict(zip(net.param_names, weights, strict=True))
    expected = call(peer, named, x)
    own = list(module.parameters())
    close(net(x, weights=weights), expected)
    close(bare(x, weights=named), expected)
    assert all(a is b for a, b in zip(own, net.internal_params, strict=True))
    torch.testing.assert_close(dict(net.module.named_buffers()), dict(peer.named_buffers()))
    torch.testing.assert_close(dict(bare.module.named_buffers()), dict(peer.named_buffers()))
    assert list(bare.parameters()) == []
    assert bare.internal_params is None
    assert bare.hyper_shapes_learned == net.param_shapes
    assert all(p is not None for p in copied.parameters())
    close(net(x), peer(*x) if isinstance(x, tuple) else peer(**x) if isinstance(x, dict) else peer(x))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("no_weights", [False, True])
def test_state_and_copies(name, no_weights):
    make, example, _ = ARCHITECTURES[name]
    net, x = ModuleMainNet(make(), no_weights=no_weights), example()
    weights = [torch.randn(shape) for shape in net.param_shapes]
    state = net.state_dict()
    assert len({id(t) for t in net.state_dict(keep_vars=True).values()}) == len(state)
    assert len(list(net.parameters())) == (0 if no_weights else len(weights))
    fresh = ModuleMainNet(make(), no_weights=no_weights)
    fresh.load_state_dict(state)
    twins = [fresh, copy.deepcopy(net)]
    if name not in NO_PICKLE:
        twins.append(pickle.loads(pickle.dumps(net)))
    expected = copy.deepcopy(net)(x, weights=weights)
    for twin in twins:
        torch.testing.assert_close(twin.state_dict(), state)
        close(twin(x, weights=weights), expected)
        assert twin.module is not net.module


def test_weights_are_put_back_after_an_error():
    module = nn.Sequential(nn.Linear(3, 2))
    net, own = ModuleMainNet(module), list(module.parameters())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        net(torch.randn(5, 4), weights=[torch.randn(2, 3), torch.randn(2)])
    assert all(a is b for a, b in zip(own, module.parameters(), strict=True))


def test_recurrent_modules_keep_no_stray_weights():
    module = nn.LSTM(2, 3)
    net, x = ModuleMainNet(module), torch.randn(4, 1, 2)
    before = module(x)
    net(x, weights=[torch.randn(shape) for shape in net.param_shapes])
    assert all(a is b for a, b in zip(module._flat_weights, module.parameters(), strict=True))
    close(module(x), before)


def test_part_of_the_weights_by_name():
    module, x = nn.Linear(3, 2), torch.randn(4, 3)
    net, bias = ModuleMainNet(module), torch.randn(2, requires_grad=True)
    out = net(x, weights={"bias": bias})
    torch.testing.assert_close(out, x @ module.weight.T + bias)
    out.sum().backward()
    assert bias.grad is not None
    assert module.bias.grad is None
    assert module.weight.grad is not None


def test_moves_and_modes():
    net = ModuleMainNet(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Dropout()).eval(), no_weights=True)
    assert not net.training
    net.to(torch.float64)
    assert net.module[1].running_mean.dtype == torch.float64
    assert net.train().module[2].training
    lstm = ModuleMainNet(nn.LSTM(2, 3), no_weights=True).double()
    weights = [torch.randn(shape, dtype=torch.float64) for shape in lstm.param_shapes]
    assert lstm(torch.randn(4, 1, 2, dtype=torch.float64), weights=weights)[0].dtype == torch.float64


def test_interface():
    net = ModuleMainNet(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1, bias=False)))
    assert isinstance(net, MainNetInterface)
    assert net.has_bias
    assert net.distillation_targets() is None
    assert net.hyper_shapes_learned is None
    assert net.internal_params_ref == [0, 1, 2]
    net.custom_init()
    assert net.module[0].bias.eq(0).all()
    net.overwrite_internal_params([torch.ones(shape) for shape in net.param_shapes])
    assert net.module[0].weight.eq(1).all()


# ---------------------------------------------------------------------- functional copies


@pytest.mark.parametrize("make", [ByRecords, ByLists, lambda: MLP(3, 2, (4,), use_batch_norm=True)])
def test_functional_copy_of_main_networks(make):
    net, x = make(), torch.randn(5, 3)
    own = [p.clone() for p in net.parameters()]
    copied = functional_copy(net)
    assert type(copied) is type(net)
    assert list(copied.parameters()) == []
    assert copied.internal_params is None
    assert copied.hyper_shapes_learned == copied.param_shapes == net.param_shapes
    assert copied.param_names == net.param_names
    assert [n for n, _ in copied.named_buffers()] == [n for n, _ in net.named_buffers()]
    weights = [torch.randn(shape) for shape in net.param_shapes]
    expected = net(x, weights=weights)
    for twin in (copied, copy.deepcopy(copied), pickle.loads(pickle.dumps(copied)), functional_copy(copied)):
        torch.testing.assert_close(twin(x, weights=weights), expected)
    torch.testing.assert_close(list(net.parameters()), own)


def test_functional_copy_of_modules():
    module, x = nn.Linear(3, 2), torch.randn(5, 3)
    wrapped = ModuleMainNet(module)
    for copied in (functional_copy(module), functional_copy(wrapped), functional_copy(functional_copy(module))):
        assert isinstance(copied, ModuleMainNet)
        assert list(copied.parameters()) == []
        assert copied.param_names == ["weight", "bias"]
        torch.testing.assert_close(copied(x, weights=[module.weight, module.bias]), module(x))
    assert wrapped.internal_params is not None


def test_functional_copy_keeps_what_is_not_in_the_table():
    class Scaled(ByRecords):
        def __init__(self):
            super().__init__()
            self.log_scale = nn.Parameter(torch.zeros(()))

    assert [name for name, _ in functional_copy(Scaled()).named_parameters()] == ["log_scale"]


def test_functional_copy_of_networks_in_networks():
    class Outer(nn.Module, MainNetInterface):
        def __init__(self):
            super().__init__()
            self.inner = MLP(3, 2, (4,), use_context_mod=True)
            self._records = self.inner.param_table

        @property
        def internal_params(self):
            return self.inner.internal_params

        def distillation_targets(self):
            return None

        def forward(self, x, weights=None, distilled_params=None, condition=None):
            return self.inner(x, weights=weights)

    net = Outer()
    copied, x = functional_copy(net), torch.randn(5, 3)
    assert list(copied.parameters()) == []
    torch.testing.assert_close(copied(x, weights=list(net.internal_params)), net(x))
    with pytest.raises(ArgumentError, match="without gains and shifts of its own"):
        copied(x)


# ---------------------------------------------------------------------- errors


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_unusable_modules():
    scripted = torch.jit.trace(nn.Linear(3, 2), torch.randn(1, 3))
    for make in (ModuleMainNet, functional_copy):
        with pytest.raises(ArgumentTypeError, match=r"(module|net): is a list; pass an nn.Module"):
            make([nn.Linear(3, 2)])
        with pytest.raises(ArgumentError, match=r"Sequential has no parameters.*nn.ModuleList"):
            make(nn.Sequential(nn.ReLU()))
        with pytest.raises(
            ArgumentError, match=r"module.0.weight has no shape yet \(LazyLinear\); run one forward pass"
        ):
            make(nn.Sequential(nn.LazyLinear(2)))
        with pytest.raises(ArgumentTypeError, match=r"module.0 is a DataParallel.*`module.0.module`"):
            make(nn.Sequential(nn.DataParallel(nn.Linear(3, 2))))
        with pytest.raises(ArgumentTypeError, match="module is a ScriptModule"):
            make(scripted)


def test_modules_that_cannot_be_copied():
    module = nn.Linear(3, 2)
    module.cached = module.weight * 2
    with pytest.raises(ArgumentTypeError, match=r"cannot be copied \(.*parametrizations"):
        functional_copy(module)
    assert ModuleMainNet(module).num_params == 8


def test_wrong_weights():
    net, x = ModuleMainNet(nn.Linear(3, 2), no_weights=True), torch.randn(4, 3)
    with pytest.raises(ArgumentError, match=r"keeps no weights \(no_weights=True\); .* \[\[2, 3\], \[2\]\]"):
        net(x)
    with pytest.raises(ArgumentError, match="1 tensors were given, expected 2"):
        net(x, weights=[torch.randn(2, 3)])
    with pytest.raises(ArgumentError, match=r"weights\[1\]: has shape \[3\], but parameter 'bias' has \[2\]"):
        net(x, weights=[torch.randn(2, 3), torch.randn(3)])
    with pytest.raises(ArgumentError, match=r"unknown names \['b'\], missing names \['bias'\]"):
        net(x, weights={"weight": torch.randn(2, 3), "b": torch.randn(2)})
    with pytest.raises(ArgumentTypeError, match="weights: is one tensor"):
        net(x, weights=torch.randn(8))
    with pytest.raises(ArgumentError, match="condition: a plain module takes neither"):
        net(x, weights=[torch.randn(2, 3), torch.randn(2)], condition=1)
