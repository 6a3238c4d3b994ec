"""Decoupled decay: what it leaves alone, and that nothing of it stays behind."""

from __future__ import annotations

import gc

import torch
from torch import nn
from torch.optim import optimizer as torch_optimizer

from bayeshnet.guides import GroupDecay


def test_parameters_without_a_gradient_stay():
    learned, frozen = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    decay = GroupDecay([{"params": [learned, frozen], "decay": 2.0}])
    optimizer = torch.optim.Adam([learned, frozen], lr=0.1)
    frozen.requires_grad_(False)
    learned.grad = torch.zeros(2)
    optimizer.step()
    torch.testing.assert_close(learned.detach(), torch.full((2,), 0.8))
    assert torch.equal(frozen, torch.ones(2))
    decay.remove()


def test_what_is_dropped_leaves_no_hooks_behind():
    def hooks():
        return len(torch_optimizer._global_optimizer_post_hooks), len(torch_optimizer._global_optimizer_pre_hooks)

    before = hooks()
    for _ in range(3):
        GroupDecay([{"params": [nn.Parameter(torch.ones(2))], "decay": 2.0}])
    gc.collect()
    assert hooks() == before
