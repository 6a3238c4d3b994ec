"""Low-rank adapters: a frozen network, Bayesian in small corrections of some of its weights."""

from __future__ import annotations

import copy
import pickle
import re

import pyro
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from bayeshnet import AutoHypernet, BayesianModel, fit, likelihoods, load, load_posterior, predict, priors, save
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.evaluation import sample_networks
from bayeshnet.layers import LowRankAdapter
from bayeshnet.mnets import MLP, ModuleMainNet, batched_forward, functional_copy, merged, with_adapters


class Attentive(nn.Module):
    """Two tokens of four features attend to each other; the output projection is used as a weight, not called."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        tokens = x.unflatten(-1, (2, 4))
        return self.last(self.attention(tokens, tokens, tokens, need_weights=False)[0].flatten(1))


class Listed(nn.Module):
    """Calls a layer at two places, by a plain list that refers to it."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.again = self.one
        self.steps = [self.one, torch.tanh, self.one]

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return x


def conv(cls, *, groups=1, **options):
    return nn.Sequential(cls(4, 6, 3, groups=groups, **options), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2))


def encoder():
    return nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2, enable_nested_tensor=False
    )


# The network, its inputs, and the layers that get adapters.
CASES = {
    "linear": (lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)), (5, 3), "*"),
    "one layer": (lambda: nn.Linear(3, 2, bias=False), (5, 3), nn.Linear),
    "conv1d": (lambda: conv(nn.Conv1d, stride=2), (5, 4, 9), "0"),
    "conv2d": (lambda: conv(nn.Conv2d, padding=1, padding_mode="circular"), (5, 4, 5, 5), nn.Conv2d),
    "conv3d": (lambda: conv(nn.Conv3d, padding="same", dilation=2), (5, 4, 3, 3, 3), "*"),
    "groups": (lambda: conv(nn.Conv2d, groups=2, bias=False), (5, 4, 5, 5), "*"),
    "attention": (Attentive, (5, 8), ["attention.out_proj", "last"]),
    "transformer": (encoder, (5, 3, 8), ["*.linear1", "*.linear2", "*.out_proj"]),
    "shared": (Listed, (5, 4), "one"),
}


@pytest.fixture(params=CASES)
def case(request):
    """The pretrained network in double precision, its copy with adapters of rank 2, and inputs."""
    torch.manual_seed(3)
    make, shape, targets = CASES[request.param]
    net = make().double()
    x = torch.randn(shape, dtype=torch.float64)
    net(x)  # lazy layers get their shapes
    return net, with_adapters(net, rank=2, alpha=3.0, targets=targets), x


def adapter_names(net):
    return [name for name, _ in net.named_parameters() if name.rpartition(".")[2].startswith("adapter_")]


def moved(adapted):
    """With corrections that are not zero."""
    other = copy.deepcopy(adapted)
    with torch.no_grad():
        for name in adapter_names(other):
            other.get_parameter(name).normal_()
    return other


def test_starts_at_the_network_and_trains_the_adapters_alone(case):
    net, adapted, x = case
    torch.testing.assert_close(adapted(x), net(x), rtol=1e-12, atol=1e-12)
    assert all(param.requires_grad for param in net.parameters())
    trained = [name for name, param in adapted.named_parameters() if param.requires_grad]
    assert trained == adapter_names(adapted) != []
    adapted(x).square().mean().backward()
    for name, param in adapted.named_parameters():
        assert (param.grad is not None) == (name in trained)
    # B is 0 at the start, so that A has no gradient there.
    assert all(bool(adapted.get_parameter(name).grad.any()) for name in trained if name.endswith("adapter_b"))
    assert functional_copy(adapted).param_names == trained


def test_samples_of_the_adapters_vectorised_looped_and_merged(case):
    """Each sample equals the plain network with the corrected weights."""
    net, adapted, x = case
    bare = functional_copy(adapted)
    weights = [torch.randn(3, *shape, dtype=torch.float64) for shape in bare.param_shapes]
    together = batched_forward(bare, weights, x)
    for i in range(3):
        one = [value[i] for value in weights]
        torch.testing.assert_close(together[i], bare(x, weights=one), rtol=1e-10, atol=1e-10)
        own = bare.with_weights(one)
        plain = merged(own)
        assert list(plain.state_dict()) == list(net.state_dict())
        assert not any(isinstance(part, LowRankAdapter) for part in plain.modules())
        assert not any(param.requires_grad for param in plain.parameters())
        torch.testing.assert_close(plain(x), together[i], rtol=1e-10, atol=1e-10)
        again = copy.deepcopy(net)
        again.load_state_dict(plain.state_dict())
        torch.testing.assert_close(again(x), together[i], rtol=1e-10, atol=1e-10)
        assert float((together[i] - net(x)).detach().abs().max()) > 0.1, "the corrections matter"


def test_the_weight_is_that_of_the_formula():
    torch.manual_seed(0)
    layer = nn.Conv1d(4, 6, 3, groups=2).double()
    adapter = moved(with_adapters(layer, rank=2, alpha=5.0))
    expected = layer.weight.detach().clone()
    for out in range(6):
        for rank in range(2):
            expected[out] += 5.0 / 2 * adapter.adapter_b[out, rank] * adapter.adapter_a[2 * (out // 3) + rank]
    torch.testing.assert_close(adapter.weight, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(adapter.bias, layer.bias)
    assert repr(adapter).startswith("LowRankAdapter(\n  rank=2, alpha=5\n  (layer): Conv1d(4, 6")


def test_fused_kernels_see_the_corrections():
    """Evaluation without gradients: a transformer reads weights there and calls none of its layers."""
    torch.manual_seed(1)
    adapted = moved(with_adapters(encoder(), rank=2, targets=["*.linear1", "*.linear2", "*.out_proj"])).eval()
    x = torch.randn(5, 3, 8)
    with torch.no_grad():
        fused = adapted(x)
    torch.testing.assert_close(fused, adapted(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(20, 400), torch.randn(20)),
        (nn.Conv2d(6, 400, 3, groups=2), torch.randn(1, 6, 3, 3)),
    ],
)
@pytest.mark.parametrize("size", [1.0, 0.3])
def test_default_prior_gives_corrections_of_the_size_asked_for(layer, x, size):
    """For inputs of mean square 1 their standard deviation is alpha / rank."""
    torch.manual_seed(2)
    x = x / x.square().mean().sqrt()
    if x.dim() == 4:  # of each group
        x = (x.view(2, -1) / x.view(2, -1).square().mean(1, keepdim=True).sqrt()).view_as(x)
    rank, draws = 4, 1000
    adapted = with_adapters(layer, rank=rank, alpha=size * rank)
    model = BayesianModel(adapted, likelihood=likelihoods.Normal(scale=1.0))
    drawn = {name: prior.sample((draws,)) for name, prior in model.weight_priors().items()}
    with torch.no_grad():
        change = batched_forward(adapted, drawn, x if x.dim() == 4 else x[None]) - layer(x)
    # Of a draw the outputs of a group share A: their mean square is chi-squared with 4 degrees of freedom, over 4.
    error = size**2 * (2 / rank / draws) ** 0.5
    assert abs(float(change.square().mean()) - size**2) < 4 * error


def pretrained():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def fitted():
    pyro.set_rng_seed(0)
    net, x = pretrained(), torch.randn(20, 3)
    y = (net(x).detach() + x[:, :1]).squeeze(-1)
    adapted = with_adapters(net, rank=1)
    model = BayesianModel(adapted, prior=priors.Normal(scale="fan_in"), likelihood=likelihoods.Normal(scale=0.2))
    guide = AutoHypernet(model, example=(x, y))
    fit(model, guide, (x, y), steps=20, progress=False)
    return net, model, guide, x


def test_a_fit_is_bayesian_in_the_adapters_alone():
    net, model, guide, x = fitted()
    names = ["0.adapter_a", "0.adapter_b", "2.adapter_a", "2.adapter_b"]
    assert model.net.param_names == names
    assert model.net.num_params == 3 + 8 + 8 + 1
    for name, value in net.state_dict().items():
        number, _, key = name.partition(".")
        assert torch.equal(model.net.module.get_submodule(number).layer.get_buffer(key), value)
    plain = [merged(network) for network in sample_networks(guide, 3)]
    pyro.set_rng_seed(4)
    draws = sample_networks(guide, 3)
    pyro.set_rng_seed(4)
    functions = predict(model, guide, x, num_samples=3).functions
    for network, f in zip(draws, functions, strict=True):
        torch.testing.assert_close(network(x).squeeze(-1), f, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(merged(network)(x).squeeze(-1), f, rtol=1e-5, atol=1e-5)
        for key in ("0.bias", "2.bias"):
            assert torch.equal(merged(network).state_dict()[key], net.state_dict()[key])
    assert not torch.equal(plain[0][0].weight, plain[1][0].weight)


def test_saved_and_loaded(tmp_path):
    _, model, guide, x = fitted()
    save(tmp_path / "run", model=model, guide=guide)
    pyro.set_rng_seed(1)
    before = predict(model, guide, x, num_samples=10).mean
    # The frozen weights come from the file.
    again, posterior = load_posterior(
        tmp_path / "run", with_adapters(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)), rank=1)
    )
    pyro.set_rng_seed(1)
    assert torch.equal(predict(again, posterior, x, num_samples=10).mean, before)

    adapted, other = moved(with_adapters(pretrained(), rank=1)), with_adapters(pretrained(), rank=1)
    save(tmp_path / "net", net=adapted)
    load(tmp_path / "net", net=other)
    assert torch.equal(adapted(x), other(x))
    with pytest.raises(ValueError, match="alpha"):
        load(tmp_path / "net", net=with_adapters(pretrained(), rank=1, alpha=2.0))
    assert torch.equal(pickle.loads(pickle.dumps(adapted))(x), adapted(x))


def test_exported():
    adapted = moved(with_adapters(conv(nn.Conv2d)[:1], rank=2)).eval()
    x = torch.randn(2, 4, 5, 5)
    exported = torch.export.export(adapted, (x,)).module()
    torch.testing.assert_close(exported(x), adapted(x))


def test_modes_and_dtypes_are_those_of_the_network():
    net = pretrained().double().eval()
    net[0].train()
    adapted = with_adapters(net, rank=1)
    assert [part.training for part in adapted] == [True, False, False]
    assert {param.dtype for param in adapted.parameters()} == {torch.float64}


def tied():
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    return net


def with_hook():
    net = nn.Sequential(nn.Linear(4, 4))
    net[0].register_forward_hook(lambda layer, args, output: -output)
    return net


class Doubled(nn.Linear):
    def forward(self, x):
        return 2.0 * super().forward(x)


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        (pretrained(), {}, r"rank: is 4, and the weight \(8, 3\) of '0' has rank 3 at most; pass a smaller rank."),
        (pretrained(), {"rank": 2}, r"weight \(1, 8\) of '2' has rank 1 at most; .* leave it out: targets=\['0'\]"),
        (conv(nn.Conv2d, groups=2)[:1], {}, r"weight \(6, 2, 3, 3\) of '0' has rank 3 at most"),
        (pretrained(), {"targets": "fc*"}, r"targets: 'fc\*' matches none of the layers .*\['0', '2'\]"),
        (pretrained(), {"targets": nn.Conv2d}, r"targets: Conv2d matches none"),
        (pretrained(), {"targets": []}, r"targets: is empty"),
        (nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3)), {}, "net: Sequential has no linear layer or convolution"),
        (MLP(3, 1, (4,), verbose=False), {}, "net: MLP has no linear layer"),
        (Attentive(), {"rank": 1}, r"matches 'attention', .*three weights in one.*\['attention.out_proj', 'last'\]"),
        (
            nn.Sequential(nn.ConvTranspose1d(4, 4, 3), nn.Linear(4, 4)),
            {"rank": 1},
            r"matches '0', .*ConvTranspose1d: transposed convolutions can have none. .*targets=\['1'\]",
        ),
        (nn.ModuleList([nn.LSTM(4, 4), nn.Linear(4, 4)]), {"rank": 1}, "recurrent layers can have none"),
        (nn.ModuleList([nn.Bilinear(4, 4, 4), nn.Linear(4, 4)]), {"rank": 1}, "a bilinear layer can have none"),
        (tied(), {"targets": "2"}, r"its weight is that of another layer, too \(tied\). .*targets=\['3'\]"),
        (
            nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4)),
            {},
            r"weight is parametrised. .*targets=\['1'\]",
        ),
        (with_hook(), {}, "net: Sequential has no .* that can have an adapter; '0': it has hooks"),
        (Doubled(4, 4), {}, "it has a forward of its own"),
        (with_adapters(nn.Linear(4, 4)), {}, "it has one already"),
        (pretrained(), {"rank": 0}, "rank: is 0"),
        (pretrained(), {"alpha": -1.0}, "alpha: is -1"),
    ],
)
def test_refused_values(net, options, message):
    with pytest.raises(ArgumentError, match=message):
        with_adapters(net, **options)


def test_refused_types():
    with pytest.raises(ArgumentTypeError, match=r"net: is .*function"):
        with_adapters(torch.tanh)
    with pytest.raises(ArgumentTypeError, match=r"targets: has .*int"):
        with_adapters(pretrained(), targets=[2])
    with pytest.raises(ArgumentTypeError, match="rank: is"):
        with_adapters(pretrained(), rank=1.5)
    with pytest.raises(ArgumentTypeError, match="net: is"):
        merged("net")


def test_refused_merges():
    with pytest.raises(ArgumentError, match="net: has no low-rank adapters"):
        merged(pretrained())
    bare = ModuleMainNet(with_adapters(pretrained(), rank=1), no_weights=True)
    with pytest.raises(UsageError, match=re.escape("net: the adapters of ['module.0', 'module.2'] have no values")):
        merged(bare)
