"""Networks that several tests of main networks share."""

# pyright: reportOptionalSubscript=false, reportOptionalIterable=false, reportGeneralTypeIssues=false

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from bayeshnet.mnets import MainNetInterface, ParamRecord


class ByRecords(nn.Module, MainNetInterface):
    """A third-party network, ``a tanh(x W^T) + offset``, that describes itself by records."""

    def __init__(self):
        nn.Module.__init__(self)
        MainNetInterface.__init__(self)
        self.register_buffer("offset", torch.tensor(2.0))
        self._internal_params = nn.ParameterList(
            [nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(1, 4))]
        )
        self._records = (
            ParamRecord((4, 3), "weight", 1),
            ParamRecord((4,), "bias", 1),
            ParamRecord((1, 4), "weight", 2),
        )
        self._has_fc_out = self._mask_fc_out = True

    def distillation_targets(self):
        return None

    def forward(self, x, weights=None, distilled_params=None, condition=None):
        w, b, a = self.internal_params if weights is None else weights
        return torch.tanh(x @ w.T + b) @ a.T + self.offset


class ByLists(nn.Module, MainNetInterface):
    """One that keeps parallel lists instead, with its first tensor external."""

    def __init__(self):
        super().__init__()
        self._param_shapes = [[4, 3], [4], [1, 4]]
        self._param_shapes_meta = [
            {"name": "weight", "index": -1, "layer": 1},
            {"name": "bias", "index": 0, "layer": 1},
            {"name": "weight", "index": 1, "layer": 2},
        ]
        self._hyper_shapes_learned = [[4, 3]]
        self._hyper_shapes_learned_ref = [0]
        self._internal_params = nn.ParameterList([nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(1, 4))])

    def distillation_targets(self):
        return None

    def forward(self, x, weights=None, distilled_params=None, condition=None):
        if weights is None or len(weights) not in (1, 3):
            raise ValueError("Pass the first weight or all of them.")
        w, b, a = weights if len(weights) == 3 else [*weights, *self._internal_params]
        return torch.tanh(x @ w.T + b) @ a.T


class Tied(nn.Module):
    def __init__(self, recurrent=False):
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.rnn = nn.LSTM(5, 5, batch_first=True) if recurrent else None
        self.out = nn.Linear(5, 7)
        self.out.weight = self.embed.weight

    def forward(self, x):
        h = self.embed(x)
        return self.out(torch.tanh(h) if self.rnn is None else self.rnn(h)[0])


class Pair(NamedTuple):
    mean: Tensor
    aux: dict[str, Any]


class ManyOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.scale = nn.Parameter(torch.randn(()))
        self.unused = nn.Parameter(torch.randn(2))

    def forward(self, x):
        h = self.first(x)
        return Pair(h * self.scale, {"hidden": [h, h + 1], "input": x})


class Counts(nn.Module):
    """Writes to a buffer in every call."""

    def __init__(self, *, assigns):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("seen", torch.zeros(()))
        self.assigns = assigns

    def forward(self, x):
        out = self.linear(x)
        if self.assigns:
            self.seen = self.seen + out.detach().mean()
        else:
            self.seen += 1
        return out * self.seen.clone()


class Branches(nn.Module):
    """Control flow that depends on data."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        out = self.linear(x)
        return out if out.sum() > 0 else -2 * out


class Noisy(nn.Module):
    """Draws a random number, then does what vmap cannot."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        out = self.linear(x) + torch.rand(())
        return out * float(out.sum() > 0)


def _sequential_cnn():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2)
    ).eval()


def _transformer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class UnitNorm(nn.Module):
    """Spectral norm of any weight, where PyTorch's parametrisation belongs to one."""

    def forward(self, weight):
        return weight / torch.linalg.matrix_norm(weight, 2)


def _parametrised():
    first = nn.Linear(3, 4)
    parametrize.register_parametrization(first, "weight", UnitNorm())
    return nn.Sequential(
        first,
        nn.Tanh(),
        parametrizations.weight_norm(nn.Linear(4, 2)),
        parametrizations.orthogonal(nn.Linear(2, 2)),
    ).eval()


# Name: network, input, whether it can be vectorised (None: as a chain, without vmap).
ARCHITECTURES: dict[str, tuple[Any, Any, bool | None]] = {
    "linear": (lambda: nn.Linear(3, 2, bias=False), lambda: torch.randn(6, 3), None),
    "mlp": (
        lambda: nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 4), nn.Tanh()), nn.Linear(4, 2)),
        lambda: torch.randn(6, 3),
        None,
    ),
    "flattened mlp": (
        lambda: nn.Sequential(nn.Flatten(), nn.Tanh(), nn.Linear(12, 4), nn.Dropout(0.5), nn.ReLU(True)).eval(),
        lambda: torch.randn(6, 3, 4),
        None,
    ),
    "mlp on sequences": (
        lambda: nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)),
        lambda: torch.randn(6, 5, 3),
        True,
    ),
    "cnn": (_sequential_cnn, lambda: torch.randn(5, 1, 8, 8), True),
    "transposed cnn": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(2, 4, 3), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.PReLU()
        ),
        lambda: torch.randn(5, 2, 4, 4),
        True,
    ),
    "batch norm, training": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)),
        lambda: torch.randn(6, 3),
        False,
    ),
    "batch norm without statistics": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False)),
        lambda: torch.randn(6, 3),
        True,
    ),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.RMSNorm(4)),
        lambda: torch.randn(6, 3),
        True,
    ),
    "tied": (Tied, lambda: torch.randint(0, 7, (3, 4)), True),
    "tied recurrent": (lambda: Tied(recurrent=True), lambda: torch.randint(0, 7, (3, 4)), False),
    "lstm": (lambda: nn.LSTM(3, 4, 2, bidirectional=True), lambda: torch.randn(5, 2, 3), False),
    "gru cell": (lambda: nn.GRUCell(3, 4), lambda: (torch.randn(5, 3), torch.randn(5, 4)), True),
    "lstm cell": (lambda: nn.LSTMCell(3, 4), lambda: torch.randn(5, 3), False),
    "transformer": (_transformer, lambda: torch.randn(3, 5, 8), True),
    "transformer, evaluation": (lambda: _transformer().eval(), lambda: torch.randn(3, 5, 8), True),
    "attention": (
        lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True, kdim=4, vdim=4),
        lambda: {"query": torch.randn(3, 5, 8), "key": torch.randn(3, 5, 4), "value": torch.randn(3, 5, 4)},
        True,
    ),
    "parametrised": (_parametrised, lambda: torch.randn(6, 3), True),
    "bilinear": (
        lambda: nn.Bilinear(2, 3, 4),
        lambda: {"input1": torch.randn(5, 2), "input2": torch.randn(5, 3)},
        True,
    ),
    "many outputs": (ManyOutputs, lambda: torch.randn(6, 3), True),
    "branches": (Branches, lambda: torch.randn(6, 3), False),
    "counts": (lambda: Counts(assigns=False), lambda: torch.randn(6, 3), False),
    "assigns": (lambda: Counts(assigns=True), lambda: torch.randn(6, 3), False),
}


def leaves(tree):
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    return [leaf for part in tree or () for leaf in leaves(part)]


def cast(tree, dtype, device="cpu"):
    """Its floating-point tensors in another precision."""
    if isinstance(tree, Tensor):
        return tree.to(device, dtype) if tree.is_floating_point() else tree.to(device)
    if isinstance(tree, dict):
        return {key: cast(part, dtype, device) for key, part in tree.items()}
    return tuple(cast(part, dtype, device) for part in tree)


def call(module, params, x):
    """``torch.func.functional_call`` with the conventions of the package for x."""
    args, kwargs = (x, {}) if isinstance(x, tuple) else ((), x) if isinstance(x, dict) else ((x,), {})
    return torch.func.functional_call(module, params, args, kwargs)
