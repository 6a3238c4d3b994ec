"""Attention and padding under weights that are passed: no fused kernels, and no global switch."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from bayeshnet.mnets import batched_forward
from tests.mnets.weight_samples import check


class Encoded(nn.Module):
    """The mean over all places, padding too, of a transformer's output."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.out = nn.Linear(8, 1)

    def forward(self, x, padding=None, mask=None):
        if isinstance(self.encoder, nn.MultiheadAttention):
            h, _ = self.encoder(x, x, x, key_padding_mask=padding, attn_mask=mask)
        elif isinstance(self.encoder, nn.TransformerEncoder):
            h = self.encoder(x, mask=mask, src_key_padding_mask=padding)
        else:
            h = self.encoder(x, src_mask=mask, src_key_padding_mask=padding)
        return self.out(h if h.dim() == 2 else h.mean(1 if self.batch_first else 0))

    @property
    def batch_first(self):
        part = self.encoder.layers[0] if isinstance(self.encoder, nn.TransformerEncoder) else self.encoder
        return getattr(part, "self_attn", part).batch_first


def layer(**options):
    return nn.TransformerEncoderLayer(8, 2, 16, **{"batch_first": True, "dropout": 0.0, **options})


ENCODERS = {
    "encoder": lambda: nn.TransformerEncoder(layer(), 2),
    "encoder, no check of masks": lambda: nn.TransformerEncoder(layer(), 2, mask_check=False),
    "encoder, norm first": lambda: nn.TransformerEncoder(layer(norm_first=True), 2, enable_nested_tensor=False),
    "encoder, sequence first": lambda: nn.TransformerEncoder(layer(batch_first=False), 1, enable_nested_tensor=False),
    "encoder, gelu": lambda: nn.TransformerEncoder(layer(activation="gelu"), 1),
    "layer": layer,
    "layer, norm first": lambda: layer(norm_first=True),
    "attention": lambda: nn.MultiheadAttention(8, 2, batch_first=True),
    "attention, sequence first": lambda: nn.MultiheadAttention(8, 2),
}


@pytest.mark.parametrize("kind", ["padding", "float padding", "holes", "mask", "both", "none"])
@pytest.mark.parametrize("name", ENCODERS)
def test_padding_of_transformers(name, kind):
    """Vectorised and looped differed by up to 1.2 for "encoder" with "padding": the loop had zeros there."""
    net = Encoded(ENCODERS[name]()).double().eval()
    x = torch.randn(4, 5, 8, dtype=torch.float64)
    padding = torch.zeros(4, 5, dtype=torch.bool)
    padding[1:, 3:] = True
    if kind == "holes":
        padding[2, 1] = True  # not at the right end alone, so that PyTorch would not cut it off
    if kind == "float padding":
        padding = torch.zeros(4, 5, dtype=torch.float64).masked_fill(padding, -torch.inf)
    mask = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1) if kind in ("mask", "both") else None
    if not net.batch_first:
        x = x.transpose(0, 1).contiguous()
    args = (x, padding if kind not in ("mask", "none") else None, mask)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Support for mismatched")
        check(net, args)
    assert torch.backends.mha.get_fastpath_enabled()


def test_numbers_of_a_transformer_are_those_of_the_unfused_one():
    """Padded places have the numbers of training; the plain network in evaluation without gradients has zeros there."""
    net = nn.TransformerEncoder(layer(), 2).double().eval()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    padding = torch.tensor([[False] * 3 + [True] * 2] * 2 + [[False] * 5])
    weights = torch.cat([p.detach().reshape(-1) for p in net.parameters()]).repeat(2, 1)
    kwargs = {"src": x, "src_key_padding_mask": padding}
    ours = batched_forward(net, weights, kwargs)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The PyTorch API of nested tensors")
        fused = net(**kwargs)
    torch.testing.assert_close(ours[0], net(**kwargs).detach())  # with gradients PyTorch does not fuse
    torch.testing.assert_close(ours[0][~padding], fused[~padding])
    assert fused[padding].eq(0).all()
    assert ours[0][padding].abs().min() > 0


def test_decoders_and_whole_transformers():
    class Net(nn.Module):
        def __init__(self, whole):
            super().__init__()
            options = {"batch_first": True, "dropout": 0.0}
            if whole:
                self.net = nn.Transformer(8, 2, 1, 1, 16, **options)
            else:
                self.net = nn.TransformerDecoderLayer(8, 2, 16, **options)

        def forward(self, x, padding):
            more = {} if isinstance(self.net, nn.TransformerDecoderLayer) else {"src_key_padding_mask": padding}
            x, y = (x, x.flip(1)) if more else (x.flip(1), x)
            return self.net(x, y, memory_key_padding_mask=padding, tgt_key_padding_mask=padding, **more).mean(1)

    padding = torch.tensor([[False] * 3 + [True] * 2] * 2 + [[False] * 5])
    for whole in (False, True):
        check(Net(whole).double().eval(), (torch.randn(3, 5, 8, dtype=torch.float64), padding))


def test_no_global_switch_is_touched(monkeypatch):
    """Another thread would see it."""

    def fail(value):
        raise AssertionError(value)

    monkeypatch.setattr(torch.backends.mha, "set_fastpath_enabled", fail)
    test_rows_that_are_padding_alone()


def test_rows_that_are_padding_alone():
    net = Encoded(nn.TransformerEncoder(layer(), 2)).double().eval()
    x, padding = torch.randn(3, 5, 8, dtype=torch.float64), torch.zeros(3, 5, dtype=torch.bool)
    padding[1] = True
    check(net, (x, padding), train=False)
