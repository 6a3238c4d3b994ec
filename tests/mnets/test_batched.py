# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import copy
import gc
import warnings
import weakref

import pytest
import torch
from torch import nn

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.mnets import MLP, ModuleMainNet, batched, batched_forward, functional_copy
from tests.mnets.networks import (
    ARCHITECTURES,
    Branches,
    ByLists,
    ByRecords,
    Counts,
    ManyOutputs,
    Noisy,
    call,
    cast,
    leaves,
)

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def problem(name, dtype=torch.float32, num=5):
    """Network, input, weight samples near its own weights, and the outputs of the plain loop."""
    make, example, vectorised = ARCHITECTURES[name]
    net, x = make().to(dtype), cast(example(), dtype)
    params = dict(net.named_parameters())
    own = torch.cat([p.detach().reshape(-1) for p in params.values()])
    weights = (own + 0.1 * torch.randn(num, len(own), dtype=dtype)).requires_grad_()
    peer, outputs = copy.deepcopy(net), []
    for sample in weights:
        parts = sample.split([p.numel() for p in params.values()])
        named = {name: part.view(p.shape) for (name, p), part in zip(params.items(), parts, strict=True)}
        outputs.append(leaves(call(peer, named, x)))
    return net, x, weights, [torch.stack(column) for column in zip(*outputs, strict=True)], peer, vectorised


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equals_the_loop(name, precision):
    dtype = DTYPES[precision]
    net, x, weights, expected, peer, vectorised = problem(name, dtype)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-10}
    grads = torch.autograd.grad(sum(out.square().sum() for out in expected), weights, retain_graph=True)
    state = torch.get_rng_state()
    start = copy.deepcopy(net)
    for chunk_size in (None, 2, 1, 5, 50):
        for target in (copy.deepcopy(start), ModuleMainNet(copy.deepcopy(start)), functional_copy(start)):
            outputs = leaves(batched_forward(target, weights, x, chunk_size=chunk_size))
            torch.testing.assert_close(outputs, expected, **tolerance)
            ours = torch.autograd.grad(sum(out.square().sum() for out in outputs), weights)
            torch.testing.assert_close(ours, grads, rtol=1e-3, atol=tolerance["atol"] * 100)
            with torch.no_grad():
                twice = batched_forward(copy.deepcopy(start), weights, x, chunk_size=chunk_size)
            torch.testing.assert_close(leaves(twice), expected, **tolerance)
            own = dict(target.named_buffers())
            theirs = {name.removeprefix("module."): b for name, b in own.items()}
            torch.testing.assert_close(theirs, dict(peer.named_buffers()))
    assert torch.equal(state, torch.get_rng_state())
    found = batched_forward(net, weights, x)
    assert batched._KNOWN.get(net, {}).get(tuple(m.training for m in net.modules())) is vectorised
    assert all(isinstance(p, nn.Parameter) and p.grad is None for p in net.parameters())
    assert type(found) is type(net(*x) if isinstance(x, tuple) else net(**x) if isinstance(x, dict) else net(x))


@pytest.mark.parametrize("name", ["mlp", "cnn", "lstm", "many outputs"])
def test_one_sample(name):
    net, x, weights, expected, *_ = problem(name, num=1)
    torch.testing.assert_close(leaves(batched_forward(net, weights, x)), expected)


@pytest.mark.parametrize("name", ["mlp", "tied", "lstm"])
def test_weights_per_tensor(name):
    net, x, weights, expected, *_ = problem(name)
    mainnet = ModuleMainNet(net)
    parts = weights.split([r.numel for r in mainnet.param_table], dim=1)
    tensors = [part.reshape(-1, *r.shape) for part, r in zip(parts, mainnet.param_table, strict=True)]
    named = dict(zip(mainnet.param_names, tensors, strict=True))
    for given in (tensors, tuple(tensors), named, dict(reversed(named.items()))):
        for chunk_size in (None, 2):
            out = leaves(batched_forward(net, given, x, chunk_size=chunk_size))
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["expanded", "transposed", "strided"])
def test_any_memory_layout(layout):
    net, x, weights, *_ = problem("mlp")
    given = {
        "expanded": weights[:1].expand(5, -1),
        "transposed": weights.detach().T.contiguous().T,
        "strided": torch.randn(10, 2 * weights.shape[1])[::2, ::2],
    }[layout]
    expected = torch.cat([batched_forward(net, row.clone().unsqueeze(0), x) for row in given])
    torch.testing.assert_close(batched_forward(net, given, x), expected)
    assert batched_forward(functional_copy(ByRecords()), torch.randn(20, 4).T, torch.randn(5, 3)).shape == (4, 5, 1)


@pytest.mark.parametrize("make", [ByRecords, lambda: MLP(3, 1, (4,), use_batch_norm=True).eval()])
def test_main_networks(make):
    net, x = make(), torch.randn(5, 3)
    weights = torch.randn(6, net.num_params)
    expected = [net(x, weights=net.flatten_params(w, net.param_shapes, unflatten=True)) for w in weights]
    for target in (net, functional_copy(net)):
        torch.testing.assert_close(batched_forward(target, weights, x), torch.stack(expected))


def test_main_network_that_keeps_some_weights():
    net, x = ByLists(), torch.randn(5, 3)
    external = torch.randn(6, 4, 3)
    expected = torch.stack([net(x, weights=[w]) for w in external])
    for given in (external.flatten(1), [external], {"1.weight": external}):
        torch.testing.assert_close(batched_forward(net, given, x), expected)
    full = torch.randn(6, 20)
    expected = [net(x, weights=net.flatten_params(w, net.param_shapes, unflatten=True)) for w in full]
    torch.testing.assert_close(batched_forward(net, full, x), torch.stack(expected))


@pytest.mark.parametrize(
    ("place", "vectorised"), [("chain", None), ("leading", None), ("vmap", True), ("embedded in vmap", True)]
)
def test_dropout_differs_between_samples(place, vectorised):
    net = {
        "chain": nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5), nn.Linear(50, 1)),
        "leading": nn.Sequential(nn.Dropout(0.5), nn.Linear(20, 50)),
        "vmap": nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5), nn.LayerNorm(50)),
        "embedded in vmap": nn.Sequential(nn.Linear(3, 50), nn.Softmax(-1), nn.Dropout(0.5)),
    }[place]
    weights = torch.cat([p.detach().reshape(-1) for p in net.parameters()]).repeat(8, 1)
    x = torch.ones(2, 20 if place == "leading" else 3)
    out = batched_forward(net, weights, x)
    assert len({tuple(o.flatten().tolist()) for o in out}) == 8
    assert batched._KNOWN.get(net, {}).get(tuple([True] * len(list(net.modules())))) is vectorised
    net.eval()
    out = batched_forward(net, weights, x)
    torch.testing.assert_close(out, out[:1].expand_as(out))


def test_reproducible():
    net, weights, x = nn.Sequential(nn.Linear(3, 9), nn.Dropout(0.5)), torch.randn(4, 36), torch.randn(5, 3)
    torch.manual_seed(3)
    first = batched_forward(net, weights, x)
    torch.manual_seed(3)
    torch.testing.assert_close(batched_forward(net, weights, x), first, rtol=0, atol=0)


# ---------------------------------------------------------------------- fall-back


def test_failed_attempt_leaves_the_generator_alone():
    net, weights, x = Noisy(), torch.randn(4, 8), torch.randn(5, 3)
    torch.manual_seed(1)
    ours = batched_forward(net, weights, x)
    torch.manual_seed(1)
    loop = ModuleMainNet(net)
    parts = [[w[:6].view(2, 3), w[6:]] for w in weights]
    torch.testing.assert_close(ours, torch.stack([loop(x, weights=p) for p in parts]))


@pytest.mark.parametrize("assigns", [False, True])
def test_networks_that_write_to_buffers(assigns):
    net = Counts(assigns=assigns)
    buffer = net.seen
    batched_forward(net, torch.randn(4, 8), torch.ones(5, 3))
    assert net.seen.shape == ()
    assert torch.isfinite(net.seen)
    if not assigns:
        assert net.seen is buffer
        assert net.seen == 4


def test_attempt_is_not_repeated(monkeypatch):
    attempts = []
    original = batched._attempt
    monkeypatch.setattr(batched, "_attempt", lambda *args, **kwargs: attempts.append(1) or original(*args, **kwargs))
    net, weights, x = Branches(), torch.randn(4, 8), torch.randn(5, 3)
    for _ in range(3):
        batched_forward(net, weights, x)
    assert len(attempts) == 1
    net.eval()
    batched_forward(net, weights, x)
    assert len(attempts) == 2


def test_what_was_learned_dies_with_the_network():
    net = Branches()
    batched_forward(net, torch.randn(4, 8), torch.randn(5, 3))
    assert net in batched._KNOWN
    reference = weakref.ref(net)
    del net
    gc.collect()
    assert reference() is None


class Faulty(nn.Linear):
    def forward(self, x):
        raise RuntimeError("a mistake of its own")


def test_mistakes_surface_with_the_networks_own_errors_behind_them():
    for net, x, what in (
        (nn.Sequential(nn.Linear(3, 2)), torch.randn(5, 4), "the network's Linear '0' takes 3 columns, not 4"),
        (nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)), torch.randn(5, 4), "'0' takes 3 columns, not 4"),
        (nn.Sequential(nn.Linear(3, 2), nn.Linear(3, 2)), torch.randn(5, 3), "its layers do not fit each other"),
        (nn.LSTM(3, 2), torch.randn(5, 4), "the network's LSTM takes 3 columns, not 4"),
        (Faulty(3, 2), torch.zeros(5, 4, dtype=torch.long), None),
    ):
        weights = torch.randn(4, sum(p.numel() for p in net.parameters()))
        with pytest.raises(RuntimeError) as own:
            net(x)
        with pytest.raises((ArgumentError, RuntimeError), match=what) as ours:
            batched_forward(net, weights, x)
        raw = ours.value if what is None else ours.value.__cause__
        assert type(raw) is RuntimeError
        assert str(raw) == str(own.value)
        assert raw.__context__ is None
        assert not batched._KNOWN.get(net)  # the next, correct call is tried again
    with pytest.raises(ArgumentError, match="x: has shape"):
        batched_forward(MLP(3, 2, use_batch_norm=True), torch.randn(4, 212), torch.randn(5))


@pytest.mark.parametrize("name", ["lstm", "batch norm, training", "transformer, evaluation", "attention"])
def test_no_warnings(name):
    net, x, weights, *_ = problem(name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with torch.no_grad():
            batched_forward(net, weights, x)
    assert caught == []
    assert torch.backends.mha.get_fastpath_enabled()


def test_warnings_of_the_network_pass():
    class Warns(nn.Linear):
        def forward(self, x):
            warnings.warn("mine", stacklevel=1)
            return super().forward(x)

    with pytest.warns(UserWarning, match="mine"):
        batched_forward(Warns(3, 2), torch.randn(4, 8), torch.randn(5, 3))


# ---------------------------------------------------------------------- inside other transforms


def test_inside_torch_func():
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double(), torch.randn(5, 3).double()
    weights = torch.randn(2, 21, dtype=torch.float64)

    def f(w):
        return batched_forward(net, w, x)

    reverse = torch.func.jacrev(f)(weights)
    torch.testing.assert_close(torch.func.jacfwd(f)(weights), reverse)
    torch.testing.assert_close(torch.autograd.functional.jacobian(f, weights), reverse)
    stacked = torch.randn(3, 2, 21, dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(f)(stacked), torch.stack([f(w) for w in stacked]))
    assert torch.autograd.gradcheck(f, (weights.requires_grad_(),), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, (weights,))
    assert torch.autograd.gradcheck(lambda t: batched_forward(net, weights.detach(), t), (x.requires_grad_(),))


def test_in_mixed_precision():
    net, x, weights, expected, *_ = problem("mlp")
    with torch.autocast("cpu", torch.bfloat16):
        out = batched_forward(net, weights, x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected[0], rtol=0.05, atol=0.05)
    (grad,) = torch.autograd.grad(out.float().square().sum(), weights)
    assert grad.dtype == torch.float32


def test_in_inference_mode():
    for name in ("mlp", "cnn", "lstm"):
        net, x, weights, expected, *_ = problem(name)
        with torch.inference_mode():
            out = leaves(batched_forward(net, weights, x))
        torch.testing.assert_close(out, [e.detach() for e in expected], rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("weights", "error", "match"),
    [
        (torch.randn(4, 7), ArgumentError, r"\[4, 7\], expected \[S, 8\] with S >= 1: weight \[2, 3\], bias \[2\]"),
        (torch.randn(8), ArgumentError, r"\[8\], expected \[S, 8\].* pass weights.unsqueeze\(0\)"),
        (torch.randn(2, 4, 8), ArgumentError, r"\[2, 4, 8\], expected \[S, 8\]"),
        (torch.randn(0, 8), ArgumentError, "with S >= 1"),
        ([torch.randn(4, 2, 3)], ArgumentError, r"1 tensors were given, expected 2: \['weight', 'bias'\]"),
        ([torch.randn(4, 2, 3), torch.randn(4, 3)], ArgumentError, r"'bias' has shape \[4, 3\], expected \[S, 2\]"),
        ([torch.randn(2, 3), torch.randn(2)], ArgumentError, r"'weight' has shape \[2, 3\], expected \[S, 2, 3\]"),
        ([torch.randn(4, 2, 3), torch.randn(5, 2)], ArgumentError, r"samples differ: \{'weight': 4, 'bias': 5\}"),
        ([torch.randn(4, 2, 3), None], ArgumentTypeError, "'bias' is a NoneType"),
        ({"weight": torch.randn(4, 2, 3)}, ArgumentError, r"unknown names \[\], missing names \['bias'\]"),
        ({"w": torch.randn(4, 2, 3)}, ArgumentError, r"unknown names \['w'\]"),
        (3.0, ArgumentTypeError, r"weights: is a float; pass a matrix \[S, D\]"),
    ],
)
def test_wrong_weights(weights, error, match):
    with pytest.raises(error, match=match):
        batched_forward(nn.Linear(3, 2), weights, torch.randn(5, 3))


def test_wrong_arguments():
    with pytest.raises(ArgumentTypeError, match="net: is a function"):
        batched_forward(lambda x: x, torch.randn(4, 8), torch.randn(5, 3))
    for chunk_size in (0, -1, 2.5, True):
        with pytest.raises(ArgumentError, match=f"chunk_size: is {chunk_size}"):
            batched_forward(nn.Linear(3, 2), torch.randn(4, 8), torch.randn(5, 3), chunk_size=chunk_size)


def test_structured_outputs_keep_their_types():
    net = ManyOutputs()
    out = batched_forward(net, torch.randn(4, 19), torch.randn(5, 3))
    assert type(out).__name__ == "Pair"
    assert out.mean.shape == (4, 5, 4)
    assert isinstance(out.aux["hidden"], list)
    assert out.aux["input"].shape == (4, 5, 3)


def test_outputs_that_are_no_tensors():
    class Tagged(nn.Linear):
        def forward(self, x):
            return super().forward(x), None, "tag"

    out, none, tag = batched_forward(Tagged(3, 2), torch.randn(4, 8), torch.randn(5, 3))
    assert (out.shape, none, tag) == ((4, 5, 2), None, "tag")
