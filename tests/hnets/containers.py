"""A container that several test files share, and its parts."""

from __future__ import annotations

import torch

from bayeshnet.hnets import HMLP, ChunkedHMLP, HContainer

from .factories import each, everything

SHAPES = [[3, 2], [3], [4, 2], [2], [4]]


def generated(uncond=2, cond=4, **kwargs):
    return HMLP([[3, 2], [3]], uncond, cond, (5,), activation_fn=torch.tanh, num_cond_embs=3 if cond else 1, **kwargs)


def chunks(uncond=2, **kwargs):
    return ChunkedHMLP([[4, 2]], 3, 2, True, uncond, 0, (5,), num_cond_embs=3, **kwargs)


def build(**kwargs):
    """Two networks, a shared plain vector and one per condition."""
    options = {
        "target_shapes": SHAPES,
        "assembly_fct": everything,
        "uncond_param_shapes": [[2]],
        "cond_param_shapes": [[4]],
        "num_cond_embs": 3,
        **kwargs,
    }
    if "hnets" not in options:
        options["hnets"] = [generated(), chunks()]
    return HContainer(**options).double()


def flat(hnet, *args, **kwargs):
    return hnet(*args, **kwargs, ret_format="flattened")


def noise(batch=4, size=2):
    return torch.randn(batch, size, dtype=torch.float64)


def each_of_one(hnets, uncond, cond):
    return each(hnets)
