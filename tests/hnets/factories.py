"""Hypernetworks of every class in configurations drawn by hypothesis, and arguments that fit them.

A new class takes part in the contract test by a function here and a line in ``FACTORIES``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from bayeshnet.hnets import HMLP, HPerturbWrapper, HyperNet

TARGETS = [
    [[3, 2], [3]],
    [[5]],
    [[]],
    [[2, 2], [], [4, 1, 2], [1]],
]


@dataclass
class Call:
    """A hypernetwork and the arguments of one forward pass.

    Attributes:
        hnet: The hypernetwork.
        kwargs: Inputs.
        weights: The argument ``weights``, None if everything is internal.
        full: One tensor per record: those that the pass uses.
        batch_size: What comes out.
        used_conds: Conditions that take part.
    """

    hnet: HyperNet
    kwargs: dict[str, Any]
    weights: Any
    full: list[Tensor]
    batch_size: int
    used_conds: set[int]


def hmlp(draw: Callable[..., Any]) -> HyperNet:
    cond_in_size = draw(st.sampled_from([0, 3]))
    uncond_in_size = draw(st.sampled_from([0, 2] if cond_in_size else [2, 4]))
    num_cond_embs = draw(st.integers(0, 3)) if cond_in_size else 1
    return HMLP(
        draw(st.sampled_from(TARGETS)),
        uncond_in_size,
        cond_in_size,
        draw(st.sampled_from([(), (4,), (5, 3)])),
        activation_fn=draw(st.sampled_from([torch.tanh, torch.nn.Sigmoid(), None])),
        use_bias=draw(st.booleans()),
        no_uncond_weights=draw(st.booleans()),
        no_cond_weights=draw(st.booleans()),
        num_cond_embs=num_cond_embs,
        dropout_rate=draw(st.sampled_from([-1, 0.2])),
        use_spectral_norm=draw(st.booleans()),
        use_batch_norm=draw(st.booleans()),
        linear_skip=draw(st.booleans()),
    )


def wrapped(inner: Callable[..., HyperNet]) -> Callable[..., HyperNet]:
    def factory(draw: Callable[..., Any]) -> HyperNet:
        hnet = inner(draw)
        size = hnet.uncond_in_size
        shared = size is not None and size <= hnet.num_outputs and draw(st.booleans())
        return HPerturbWrapper(
            hnet,
            sigma_noise=0.5,
            noise="shared" if shared else "independent",
            learn_sigma=draw(st.sampled_from([None, "scalar", "per_weight"])),
        )

    return factory


FACTORIES = {
    "HMLP": hmlp,
    "HPerturbWrapper": wrapped(hmlp),
    "HPerturbWrapper of HPerturbWrapper": wrapped(wrapped(hmlp)),
}


@st.composite
def calls(draw: Callable[..., Any], factory: Callable[..., HyperNet]) -> Call:
    """Draw a hypernetwork, its mode and precision, and arguments that fit it."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    hnet = factory(draw)
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    hnet.to(dtype).train(draw(st.booleans()))
    # Batch norm in training mode has no output for a single sample.
    smallest = 2 if hnet.training and hnet.batchnorm_layers is not None else 1
    batch = draw(st.integers(smallest, 3))
    rows = {"uncond": batch, "cond": batch}
    kwargs: dict[str, Any] = {}
    has_uncond, has_cond = bool(hnet.uncond_in_size), bool(hnet.cond_in_size)
    if has_uncond and has_cond and smallest == 1:
        single = draw(st.sampled_from(["uncond", "cond", None]))
        if single is not None:
            rows[single] = 1
    used: set[int] = set()
    if has_uncond:
        kwargs["uncond_input"] = torch.randn(rows["uncond"], hnet.uncond_in_size, dtype=dtype)
    if has_cond:
        if hnet.num_known_conds and draw(st.booleans()):
            ids = draw(st.lists(st.integers(0, hnet.num_known_conds - 1), min_size=rows["cond"], max_size=rows["cond"]))
            forms = [list, tuple, torch.tensor, lambda i: torch.tensor(i).numpy()] + [lambda i: i[0]] * (len(ids) == 1)
            kwargs["cond_id"] = draw(st.sampled_from(forms))(ids)
            used = set(ids)
        else:
            kwargs["cond_input"] = torch.randn(rows["cond"], hnet.cond_in_size, dtype=dtype)
    weights, full = external_weights(draw, hnet, dtype)
    return Call(hnet, kwargs, weights, full, batch, used)


def external_weights(draw: Callable[..., Any], hnet: HyperNet, dtype: torch.dtype) -> tuple[Any, list[Tensor]]:
    """The argument ``weights`` in one of its forms, and the complete list that it stands for."""
    table = hnet.param_table
    internal = iter(hnet.internal_params or [])
    full = [next(internal) if r.internal else random_weight(r.shape, dtype) for r in table]
    if all(record.internal for record in table):
        return None, full
    form = draw(st.sampled_from(["learned", "full", "dict"]))
    if form == "learned":
        return [full[i] for i in hnet.hyper_shapes_learned_ref or []], full
    if form == "full":
        return list(full), full
    refs = {
        "uncond_weights": hnet.unconditional_param_shapes_ref,
        "cond_weights": hnet.conditional_param_shapes_ref,
    }
    return {key: [full[i] for i in ref] for key, ref in refs.items() if any(not table[i].internal for i in ref)}, full


def random_weight(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return (torch.randn(shape, dtype=dtype) / math.sqrt(shape[-1] if shape else 1)).requires_grad_()
