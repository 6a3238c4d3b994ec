"""Modules with rules about their own weights: for weights that are passed, the numbers of the plain module.

Each case is evaluated for several samples in one call and in a loop, in float64, and compared with copies of the module
that were given the samples as parameters."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from bayeshnet import BayesianModel, likelihoods
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.mnets import ModuleMainNet, batched_forward, functional_copy
from bayeshnet.mnets.weight_rules import FunctionalCalls
from tests.mnets.networks import UnitNorm
from tests.mnets.weight_samples import TOKENS, check, expected_of, outputs, weights_near, with_weights


class Bags(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.bag, self.out = nn.EmbeddingBag(6, 4, **options), nn.Linear(4, 1)

    def forward(self, x):
        return self.out(self.bag(x))


def embedding(**options):
    return nn.Sequential(nn.Embedding(6, 4, **options), nn.Flatten(), nn.Linear(16, 1)).double()


class Tied(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.embed, self.out = nn.Embedding(6, 4, **options), nn.Linear(4, 6)
        self.out.weight = self.embed.weight

    def forward(self, x):
        return self.out(torch.tanh(self.embed(x)))


@pytest.mark.parametrize(
    "options",
    [
        {"max_norm": 1.0},
        {"max_norm": 0.7, "norm_type": 1.0},
        {"max_norm": 0.7, "norm_type": torch.inf},
        {"sparse": True},
        {"scale_grad_by_freq": True},
        {"max_norm": 1.0, "sparse": True, "scale_grad_by_freq": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("make", [embedding, lambda **o: Bags(**o).double()], ids=["embedding", "bag"])
def test_embeddings(make, options):
    """With ``max_norm`` the samples of the caller changed in place by up to 2.5; ``sparse`` ones had no gradient."""
    if "sparse" in options and "scale_grad_by_freq" in options and make is not embedding:
        options = {"max_norm": 1.0}  # PyTorch has no such bag
    check(make(**options), TOKENS)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_modes_of_bags(mode):
    check(Bags(mode=mode, padding_idx=0).double(), TOKENS)


def test_gradients_of_embeddings_are_those_of_the_function():
    """Neither frequency nor a scaling in place comes between: finite differences agree."""
    for options in ({"max_norm": 1.0, "scale_grad_by_freq": True}, {"scale_grad_by_freq": True}):
        net = embedding(**options)
        weights = weights_near(net, 2, 2.0).requires_grad_()
        assert torch.autograd.gradcheck(lambda w, net=net: batched_forward(net, w, TOKENS), (weights,))
    net, weights = Tied(padding_idx=0).double(), torch.randn(2, 30, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: batched_forward(net, w, TOKENS), (weights,))


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("index", [0, 2, -1])
def test_padding_row_stays(index, loop):
    """Predictions moved by up to 29.7 with the padding row of a sample."""
    net = embedding(padding_idx=index)
    with torch.no_grad():
        net[0].weight[index] = 3.0  # it may have any value
    row = index % 6
    x = TOKENS.clone()
    x[:, 1] = row
    weights = weights_near(net)
    moved = weights.clone()
    moved[:, 4 * row : 4 * row + 4] += 10.0
    plain = weights.clone()
    plain[:, 4 * row : 4 * row + 4] = 3.0
    expected = expected_of(net, plain, x)
    for target in (net, functional_copy(net), copy.deepcopy(functional_copy(net))):
        live = moved.clone().requires_grad_()
        for given in (weights, live):
            out = outputs(target, given, x, loop=loop)
            torch.testing.assert_close(out.detach(), expected, rtol=1e-6, atol=1e-6)
        (grad,) = torch.autograd.grad(out.sum(), live)
        assert grad[:, 4 * row : 4 * row + 4].eq(0).all()
    wrapped = ModuleMainNet(net)
    assert wrapped.fixed_rows == {"0.weight": row}
    assert f"fixed_rows={{'0.weight': {row}}}" in repr(functional_copy(net))


def test_padding_row_of_a_copy_is_saved_and_loaded():
    net, other = embedding(padding_idx=1), embedding(padding_idx=1)
    with torch.no_grad():
        net[0].weight[1] = 3.0
    copied = functional_copy(other)
    copied.load_state_dict(functional_copy(net).state_dict())
    weights = weights_near(net)
    torch.testing.assert_close(batched_forward(copied, weights, TOKENS), batched_forward(net, weights, TOKENS))


def test_padding_of_a_tied_table_is_a_weight():
    """The output layer trains that row, so that it is no constant of the plain network either."""
    assert ModuleMainNet(Tied(padding_idx=0)).fixed_rows == {}
    check(Tied(padding_idx=0).double(), TOKENS)


def test_unusable_embeddings():
    with pytest.raises(ArgumentError, match=r"'embed.weight' is the table of an embedding with max_norm, and another"):
        functional_copy(Tied(max_norm=1.0))
    net = embedding(padding_idx=0)
    parametrize.register_parametrization(net[0], "weight", nn.Tanh())
    with pytest.raises(ArgumentTypeError, match=r"module.0 has a padding_idx and a parametrised weight"):
        functional_copy(net)


def test_without_weights_the_module_is_as_it_is():
    net = embedding(max_norm=0.1)
    ModuleMainNet(net)(TOKENS)
    assert net[0].weight[0].norm() < 0.11  # scaled in place, as PyTorch does it


def test_mode_leaves_other_calls_alone():
    x, weight = torch.randn(3, 4), torch.randn(2, 4)
    with FunctionalCalls():
        assert torch.equal(F.linear(x, weight), x @ weight.T)
    offsets = torch.tensor([0, 2])
    for kwargs in ({"mode": "sum"}, {"mode": "sum", "per_sample_weights": torch.randn(4)}, {"padding_idx": 2}):
        with FunctionalCalls():
            ours = F.embedding_bag(TOKENS[0], torch.eye(6), offsets, **kwargs)
        assert torch.equal(ours, F.embedding_bag(TOKENS[0], torch.eye(6), offsets, **kwargs))


# ---------------------------------------------------------------------- B5: computed weights


class First(nn.Module):
    def forward(self, parts):
        return parts[0]


class Doubled(nn.Module):
    def forward(self, weight):
        return 2.0 * weight


def parametrised(add):
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    add(net[0])
    return net


PARAMETRISED = {
    "weight norm": parametrizations.weight_norm,
    "own spectral norm": lambda m: parametrize.register_parametrization(m, "weight", UnitNorm()),
    "orthogonal": parametrizations.orthogonal,
    "own": lambda m: parametrize.register_parametrization(m, "weight", Doubled()),
    "two": lambda m: [parametrize.register_parametrization(m, key, Doubled()) for key in ("weight", "bias")],
    "pruned": lambda m: prune.l1_unstructured(m, "weight", 0.5),
    "pruned twice": lambda m: [prune.random_unstructured(m, "weight", 0.3) for _ in range(2)],
}


@pytest.mark.parametrize("name", PARAMETRISED)
@pytest.mark.parametrize("training", [False, True])
def test_computed_weights(name, training):
    net = parametrised(PARAMETRISED[name]).train(training)
    x = torch.randn(5, 3, dtype=torch.float64)
    check(net, x)


SPECTRAL = {"new": parametrizations.spectral_norm, "old": nn.utils.spectral_norm}


@pytest.mark.parametrize("name", SPECTRAL)
def test_spectral_norm_of_drawn_weights_is_refused(name):
    """The vectors of the module's own weight normalised every draw, to norms of 5.7 in the median and up to 4877."""
    net = parametrised(SPECTRAL[name])
    refused = (
        r"module: '0.weight' has PyTorch's spectral norm, whose power iteration belongs to one weight.*matrix_norm"
    )
    for make in (
        ModuleMainNet,
        functional_copy,
        lambda net: ModuleMainNet(net, no_weights=True),
        lambda net: BayesianModel(net, likelihood=likelihoods.Normal(scale=0.5)),
        lambda net: batched_forward(net, torch.randn(3, 26, dtype=torch.float64), torch.ones(5, 3).double()),
    ):
        with pytest.raises(ArgumentError, match=refused):
            make(net)
    # Of a vector PyTorch computes the norm itself.
    parametrizations.spectral_norm(bias := nn.Linear(3, 2).double(), "bias")
    check(bias, torch.randn(5, 3, dtype=torch.float64))
    if name == "new":
        parametrize.register_parametrization(net[0], "weight", Doubled())
        with pytest.raises(ArgumentError, match=refused):
            functional_copy(net)


@pytest.mark.parametrize("name", SPECTRAL)
def test_spectral_norm_of_a_frozen_weight_stays(name):
    net = parametrised(SPECTRAL[name])
    next(p for p in net[0].parameters() if p.dim() == 2).requires_grad_(False)
    check(net.eval(), torch.randn(5, 3, dtype=torch.float64))


def test_the_spectral_norm_that_is_advised_is_one():
    """Of each draw, in the vectorised call and in the loop."""
    net = nn.Linear(3, 4, bias=False).double()
    parametrize.register_parametrization(net, "weight", UnitNorm())
    weights = 5.0 * torch.randn(20, 12, dtype=torch.float64)
    for loop in (False, True):
        normed = outputs(net, weights, torch.eye(3, dtype=torch.float64), loop=loop).detach()
        torch.testing.assert_close(torch.linalg.matrix_norm(normed, 2), torch.ones(20, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_old_weight_norm():
    """Its copy was refused; the tensor that it computes is that of the module's own parameters again afterwards."""
    net = parametrised(nn.utils.weight_norm)
    before, x = net[0].weight.clone(), torch.randn(5, 3, dtype=torch.float64)
    for loop in (False, True):
        outputs(net, weights_near(net), x, loop=loop)
        assert torch.equal(net[0].weight, before)
    check(net, x)
    rnn = nn.utils.weight_norm(nn.RNN(3, 4), "weight_hh_l0").double()
    weights, x = weights_near(rnn), x.unsqueeze(1)
    for target in (rnn, functional_copy(rnn).float().double()):
        first, _ = batched_forward(target, weights, x)
        assert not torch.equal(first[0], first[1])
        expected = [with_weights(nn.Sequential(rnn, First()), sample, x) for sample in weights]
        torch.testing.assert_close(first.detach(), torch.stack(expected))


@pytest.mark.parametrize("inside", [False, True])
def test_cache_of_parametrisations_does_not_keep_a_sample(inside):
    """All samples of a loop had the first one's weights in it."""
    net = parametrised(lambda m: parametrize.register_parametrization(m, "weight", Doubled()))
    weights, x = weights_near(net), torch.randn(5, 3, dtype=torch.float64)
    expected, own = expected_of(net, weights, x), net(x).detach()
    for loop in (False, True):
        with parametrize.cached():
            if inside:
                net(x)
            torch.testing.assert_close(outputs(net, weights, x, loop=loop).detach(), expected)
            torch.testing.assert_close(net(x).detach(), own)


class Lists(nn.Module):
    """Parameters in lists and dicts, and one that is complex."""

    def __init__(self, complex_part=False):
        super().__init__()
        self.list = nn.ParameterList([nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4))])
        self.dict = nn.ParameterDict({"a": nn.Parameter(torch.randn(4, 2)), "b": nn.Parameter(torch.randn(2))})
        self.list[1].requires_grad_(False)
        self.dict["b"].requires_grad_(False)

    def forward(self, x):
        return torch.tanh(x @ self.list[0] + self.list[1]) @ self.dict["a"] + self.dict["b"]


def test_parameters_in_lists():
    net = Lists().double()
    assert ModuleMainNet(net).param_names == ["list.0", "dict.a"]
    assert functional_copy(net).frozen_names == ("list.1", "dict.b")
    check(net, torch.randn(5, 3, dtype=torch.float64))


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_modules_with_frozen_and_parametrised_parts(kind):
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = kind(3, 4, batch_first=True)
            self.out = nn.Linear(4, 1)

        def forward(self, x):
            return self.out(self.rnn(x)[0][:, -1])

    x = torch.randn(5, 6, 3, dtype=torch.float64)
    net = Last().double()
    net.rnn.weight_hh_l0.requires_grad_(False)
    net.rnn.flatten_parameters()
    check(net, x)
    functional_copy(net).float().double()
    net = Last().double()
    parametrizations.weight_norm(net.rnn, "weight_hh_l0")
    weights = weights_near(net)
    torch.testing.assert_close(batched_forward(net, weights, x).detach(), expected_of(net, weights, x))
    with pytest.raises(ArgumentTypeError, match=r"module.rnn is a .* with parametrised weights"):
        functional_copy(net)


def test_complex_weights():
    class Fourier(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Parameter(torch.randn(3, 2, dtype=torch.complex128))

        def forward(self, x):
            return (x.to(self.mix.dtype) @ self.mix).abs()

    check(Fourier(), torch.randn(5, 3, dtype=torch.float64))
