"""Networks that users bring, as small as they can be, with inputs: one for each row of the table of networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

B = 6


class Row(NamedTuple):
    """A network, its inputs, and what is expected of it.

    Attributes:
        build: Makes the network.
        inputs: Makes the inputs of B rows.
        vectorises: Whether vmap can evaluate it.
        output: The argument of the model.
        pick: What that takes of the output of the plain module.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    vectorises: bool = True
    output: Any = None
    pick: Callable[[Any], Tensor] = lambda out: out


class OfRow(nn.Module):
    """A layer, and the mean of all that it makes of a row through a small head."""

    def __init__(self, layer: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.layer, self.head = layer, head or nn.Identity()

    def forward(self, x):
        return self.head(self.layer(x)).flatten(1).mean(1, keepdim=True)


class Recurrent(nn.Module):
    """A recurrent network that packs its padded input."""

    def __init__(self, kind):
        super().__init__()
        self.rnn, self.head = kind(3, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        hidden, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=x.shape[1])
        last = (lengths - 1).to(x.device).reshape(-1, 1, 1).expand(-1, 1, hidden.shape[-1])
        return self.head(hidden.gather(1, last).squeeze(1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 1)

    def forward(self, query, key, value):
        return self.head(self.attention(query, key, value, need_weights=False)[0].mean(1))


class Transformer(nn.Module):
    """Token ids and a mask that is True where a token is padding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(4, 1)

    def forward(self, tokens, padding):
        hidden = self.encoder(self.embedding(tokens), src_key_padding_mask=padding)
        known = (~padding).unsqueeze(-1).to(hidden.dtype)
        return self.head((hidden * known).sum(1) / known.sum(1))


class Tied(nn.Module):
    """The same weights twice, once as they are and once transposed."""

    def __init__(self):
        super().__init__()
        self.first, self.again = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.again.weight = self.first.weight

    def forward(self, x):
        return torch.tanh(self.again(torch.tanh(self.first(x))) @ self.first.weight.T).sum(1, keepdim=True)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(2, 4), nn.Linear(3, 4)

    def forward(self, u, v):
        return torch.tanh(self.left(u) + self.right(v)).sum(1, keepdim=True)


class ListInput(TwoInputs):
    """One argument: a list of tensors."""

    def forward(self, parts):
        return super().forward(*parts)


class DictInput(TwoInputs):
    """One argument: a dict of tensors."""

    def forward(self, batch):
        return super().forward(batch["u"], batch["v"])


class WithScale(TwoInputs):
    """An argument that has no rows."""

    def forward(self, u, v, scale=1.0):
        return scale * super().forward(u, v)


@dataclass
class Made:
    logits: Tensor
    hidden: Tensor


class Returns(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.body, self.head, self.how = nn.Linear(3, 4), nn.Linear(4, 1), how

    def forward(self, x):
        hidden = torch.tanh(self.body(x))
        return self.how(logits=self.head(hidden), hidden=hidden)


def as_tuple(logits, hidden):
    return hidden, logits


def sum_of_squares(out):
    return out["hidden"].square().sum(-1, keepdim=True) + out["logits"]


def flat(*shape):
    return lambda: torch.randn(B, *shape)


def pair():
    return torch.randn(B, 2), torch.randn(B, 3)


def named():
    return dict(zip("uv", pair(), strict=True))


def padded():
    return torch.randn(B, 5, 3), torch.tensor([5, 1, 3, 4, 2, 5])


def tokens():
    lengths = torch.tensor([5, 1, 3, 4, 2, 5])
    return torch.randint(7, (B, 5)), torch.arange(5) >= lengths.unsqueeze(1)


def normed(norm, *shape):
    return Row(lambda: OfRow(nn.Sequential(nn.Conv2d(2, 4, 3), norm(), nn.Tanh(), nn.Conv2d(4, 2, 2))), flat(*shape))


def weight_normed():
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 1))


def orthogonal():
    return nn.Sequential(parametrizations.orthogonal(nn.Linear(3, 3)), nn.Tanh(), nn.Linear(3, 1))


def whole(*shape):
    return lambda: torch.randint(7, (B, *shape))


def returned(how, output, pick):
    return Row(lambda: Returns(how), flat(3), output=output, pick=pick)


ROWS = {
    "conv1d": Row(lambda: OfRow(nn.Conv1d(2, 3, 3, padding=1), nn.Tanh()), flat(2, 5)),
    "conv2d": Row(lambda: OfRow(nn.Conv2d(2, 4, 3, stride=2, groups=2), nn.Tanh()), flat(2, 5, 5)),
    "conv3d": Row(lambda: OfRow(nn.Conv3d(1, 3, 2), nn.Tanh()), flat(1, 3, 3, 3)),
    "conv_transpose1d": Row(lambda: OfRow(nn.ConvTranspose1d(2, 3, 3, stride=2), nn.Tanh()), flat(2, 4)),
    "conv_transpose2d": Row(lambda: OfRow(nn.ConvTranspose2d(2, 3, 2), nn.Tanh()), flat(2, 3, 3)),
    "conv_transpose3d": Row(lambda: OfRow(nn.ConvTranspose3d(1, 2, 2), nn.Tanh()), flat(1, 2, 2, 2)),
    "batch_norm": normed(lambda: nn.BatchNorm2d(4), 2, 6, 6),
    "layer_norm": normed(lambda: nn.LayerNorm([4, 4, 4]), 2, 6, 6),
    "group_norm": normed(lambda: nn.GroupNorm(2, 4), 2, 6, 6),
    "instance_norm": normed(lambda: nn.InstanceNorm2d(4, affine=True), 2, 6, 6),
    "embedding": Row(lambda: OfRow(nn.Embedding(7, 3, padding_idx=0), nn.Linear(3, 2)), whole(4)),
    "embedding_bag": Row(lambda: OfRow(nn.EmbeddingBag(7, 3), nn.Linear(3, 2)), whole(4)),
    "lstm_packed": Row(lambda: Recurrent(nn.LSTM), padded, vectorises=False),
    "gru_packed": Row(lambda: Recurrent(nn.GRU), padded, vectorises=False),
    "attention": Row(Attention, lambda: tuple(torch.randn(B, n, 4) for n in (3, 5, 5))),
    "transformer_padding": Row(Transformer, tokens),
    "tied": Row(Tied, flat(3)),
    "weight_norm": Row(weight_normed, flat(3)),
    "orthogonal": Row(orthogonal, flat(3)),
    "bilinear": Row(lambda: nn.Bilinear(2, 3, 1), pair),
    "inputs_tuple": Row(TwoInputs, pair),
    "inputs_list": Row(ListInput, lambda: list(pair())),
    "inputs_dict": Row(TwoInputs, named),
    "inputs_one_dict": Row(DictInput, named),
    "inputs_without_rows": Row(WithScale, lambda: (*pair(), 0.5)),
    "output_dict": returned(dict, "logits", lambda out: out["logits"]),
    "output_tuple": returned(as_tuple, 1, lambda out: out[1]),
    "output_dataclass": returned(Made, "logits", lambda out: out.logits),
    "output_function": returned(dict, sum_of_squares, sum_of_squares),
}

MULTIPLE = ("lstm_packed", "attention", "transformer_padding", "inputs_tuple", "bilinear")
