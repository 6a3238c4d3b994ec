"""Networks evaluated for samples of their weights, as the tests of weight rules compare them."""

from __future__ import annotations

import copy

import torch

from bayeshnet.mnets import batched, batched_forward, functional_copy

TOKENS = torch.tensor([[1, 0, 3, 0], [0, 2, 0, 0], [5, 5, 4, 1]])


def weights_near(net, num=3, spread=0.5):
    own = torch.cat([p.detach().reshape(-1) for p in net.parameters() if p.requires_grad])
    return own + spread * torch.randn(num, len(own), dtype=own.dtype)


def with_weights(net, sample, *args):
    """The module's outputs, called with copies of a sample in the places of its parameters."""
    own = {name: p for name, p in net.named_parameters() if p.requires_grad}
    parts = sample.detach().split([p.numel() for p in own.values()])
    given = {name: part.view(p.shape).clone() for (name, p), part in zip(own.items(), parts, strict=True)}
    for param in given.values():
        param.requires_grad_()  # so that PyTorch does not fuse anything
    rules = [(part, getattr(part, "max_norm", None)) for part in net.modules()]
    with torch.set_grad_enabled(all(norm is None for _, norm in rules)):  # max_norm writes to leaves
        return torch.func.functional_call(net, given, args).detach()


def outputs(net, weights, x, *, loop):
    """What ``batched_forward`` gives, by its loop or as it chooses."""
    if loop:
        batched._KNOWN[net] = {tuple(m.training for m in net.modules()): False}
    try:
        return batched_forward(net, weights, x)
    finally:
        batched._KNOWN.pop(net, None)


def expected_of(net, weights, x):
    args = x if isinstance(x, tuple) else (x,)
    return torch.stack([with_weights(net, sample, *args) for sample in weights])


def check(net, x, *, weights=None, train=True):
    weights = weights_near(net) if weights is None else weights
    expected = expected_of(net, weights, x)
    before = weights.clone()
    own = copy.deepcopy(net.state_dict())
    for target in (net, functional_copy(net)):
        for loop in (False, True):
            with torch.no_grad():
                out = outputs(target, weights, x, loop=loop)
            torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
            if train:
                live = weights.clone().requires_grad_()
                out = outputs(target, live, x, loop=loop)
                torch.testing.assert_close(out.detach(), expected, rtol=1e-6, atol=1e-6)
                (grad,) = torch.autograd.grad(out.square().sum(), live)
                assert grad.isfinite().all()
                assert grad.layout is torch.strided
    assert torch.equal(weights, before)
    torch.testing.assert_close(net.state_dict(), own, rtol=0, atol=0)
