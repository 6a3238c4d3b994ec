"""Hypernetworks of every class in configurations drawn by hypothesis, and arguments that fit them.

A new class takes part in the contract test by a function here and a line in ``FACTORIES``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from bayeshnet.hnets import (
    HMLP,
    ChunkedHDeconv,
    ChunkedHMLP,
    HContainer,
    HDeconv,
    HPerturbWrapper,
    HyperNet,
    StructuredHMLP,
)

TARGETS = [
    [[3, 2], [3]],
    [[5]],
    [[]],
    [[2, 2], [], [4, 1, 2], [1]],
]
TANH = [torch.tanh, torch.nn.Sigmoid(), None]


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
        extra: Entries of ``weights`` beyond the two lists.
    """

    hnet: HyperNet
    kwargs: dict[str, Any]
    weights: Any
    full: list[Tensor]
    batch_size: int
    used_conds: set[int]
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sizes:
    """Inputs and conditions of a hypernetwork; those inside a container have to agree."""

    uncond: int
    cond: int
    num_conds: int

    @staticmethod
    def drawn(draw: Callable[..., Any]) -> Sizes:
        cond = draw(st.sampled_from([0, 3]))
        uncond = draw(st.sampled_from([0, 2] if cond else [2, 4]))
        return Sizes(uncond, cond, draw(st.integers(0, 3)) if cond else 1)


def externals(draw: Callable[..., Any]) -> dict[str, bool]:
    return {"no_uncond_weights": draw(st.booleans()), "no_cond_weights": draw(st.booleans())}


def hmlp_options(draw: Callable[..., Any]) -> dict[str, Any]:
    return {
        "layers": draw(st.sampled_from([(), (4,), (5, 3)])),
        "activation_fn": draw(st.sampled_from(TANH)),
        "use_bias": draw(st.booleans()),
        "dropout_rate": draw(st.sampled_from([-1, 0.2])),
        "use_spectral_norm": draw(st.booleans()),
        "use_batch_norm": draw(st.booleans()),
    }


def deconv_options(draw: Callable[..., Any]) -> dict[str, Any]:
    num_layers = draw(st.integers(2, 4))
    return {
        "num_layers": num_layers,
        "num_filters": [draw(st.integers(1, 9)) for _ in range(num_layers - 1)],
        "kernel_size": draw(st.sampled_from([2, 3, (4, 3), [(3, 2)] * (num_layers - 1)])),
        "sa_units": draw(st.sampled_from([(), (0,), (num_layers - 2,)])),
        "activation_fn": draw(st.sampled_from(TANH)),
        "use_bias": draw(st.booleans()),
        "use_spectral_norm": draw(st.booleans()),
        "use_batch_norm": draw(st.booleans()),
    }


def wake_attention(hnet: HyperNet) -> HyperNet:
    """Set gamma away from 0, its start, at which nothing in the unit has a gradient."""
    for record, param in zip([r for r in hnet.param_table if r.internal], hnet.internal_params or (), strict=True):
        if record.extra.get("info") == "self-attention" and record.name is None:
            torch.nn.init.constant_(param, 0.7)
    return hnet


def chunk_options(draw: Callable[..., Any], sizes: Sizes) -> dict[str, Any]:
    conditional = draw(st.booleans())
    drop = conditional and draw(st.booleans())  # chunk embeddings are the only condition
    return {
        "cond_chunk_embs": conditional,
        "uncond_in_size": sizes.uncond,
        "cond_in_size": 0 if drop else sizes.cond,
        "num_cond_embs": sizes.num_conds,
        **externals(draw),
    }


def hmlp(draw: Callable[..., Any], sizes: Sizes | None = None) -> HyperNet:
    sizes = sizes or Sizes.drawn(draw)
    return HMLP(
        draw(st.sampled_from(TARGETS)),
        sizes.uncond,
        sizes.cond,
        num_cond_embs=sizes.num_conds,
        linear_skip=draw(st.booleans()),
        **hmlp_options(draw),
        **externals(draw),
    )


def hdeconv(draw: Callable[..., Any], sizes: Sizes | None = None) -> HyperNet:
    sizes = sizes or Sizes.drawn(draw)
    hnet = HDeconv(
        draw(st.sampled_from(TARGETS)),
        draw(st.sampled_from([(4, 4), (5, 3), (3, 2, 3), (8, 8)])),
        sizes.uncond,
        sizes.cond,
        num_cond_embs=sizes.num_conds,
        **deconv_options(draw),
        **externals(draw),
    )
    return wake_attention(hnet)


def chunked_hmlp(draw: Callable[..., Any], sizes: Sizes | None = None) -> HyperNet:
    sizes = sizes or Sizes.drawn(draw)
    return ChunkedHMLP(
        draw(st.sampled_from(TARGETS)),
        draw(st.integers(1, 20)),
        draw(st.integers(1, 4)),
        **hmlp_options(draw),
        **chunk_options(draw, sizes),
    )


def chunked_hdeconv(draw: Callable[..., Any], sizes: Sizes | None = None) -> HyperNet:
    sizes = sizes or Sizes.drawn(draw)
    hnet = ChunkedHDeconv(
        draw(st.sampled_from(TARGETS)),
        draw(st.sampled_from([(3, 2), (2, 2, 2), (4, 4)])),
        draw(st.integers(1, 4)),
        **deconv_options(draw),
        **chunk_options(draw, sizes),
    )
    return wake_attention(hnet)


# ---------------------------------------------------------------------- assembly functions, which can be pickled


def double(chunks: list[list[Tensor]]) -> list[Tensor]:
    """Three vectors and layers; the last layer is made of two chunks."""
    first, second, one, two, three = chunks
    return [*first, *second, *one, *(torch.cat(pair) for pair in zip(two, three, strict=True))]


def double_in_place(chunks: list[list[Tensor]]) -> list[Tensor]:
    """The same by writing into a new tensor, which cannot be vectorised."""
    out = [torch.zeros_like(tensor) for tensor in double(chunks)]
    for target, tensor in zip(out, double(chunks), strict=True):
        target[:] = tensor
    return out


def each(chunks: list[list[Tensor]]) -> list[Tensor]:
    return [tensor for chunk in chunks for tensor in chunk]


def everything(hnets: list[list[Tensor]], uncond: list[Tensor], cond: list[Tensor]) -> list[Tensor]:
    return [*each(hnets), *uncond, *cond]


def structured(draw: Callable[..., Any], sizes: Sizes | None = None) -> HyperNet:
    sizes = sizes or Sizes.drawn(draw)
    targets, chunks, nums, fct = draw(
        st.sampled_from(
            [
                ([[3], [3], [4, 2], [4], [8, 2], [8]], [[[3]], [[4, 2], [4]]], [2, 3], double),
                ([[3], [3], [4, 2], [4], [8, 2], [8]], [[[3]], [[4, 2], [4]]], [2, 3], double_in_place),
                ([[2, 3]] * 3, [[[2, 3]]], [3], each),
                ([[5], [2]], [[[5]], [[2]]], [1, 1], each),
            ]
        )
    )
    options = chunk_options(draw, sizes)
    emb_sizes: Any = draw(st.integers(1, 3))
    if options["uncond_in_size"] + options["cond_in_size"] and not options["cond_chunk_embs"]:
        emb_sizes = [draw(st.integers(0 if num == 1 else 1, 3)) for num in nums]
    one = hmlp_options(draw)
    kwargs = one if draw(st.booleans()) else [hmlp_options(draw) for _ in nums]
    return StructuredHMLP(targets, chunks, nums, emb_sizes, kwargs, fct, **options)


def container(*inner: Callable[..., HyperNet]) -> Callable[..., HyperNet]:
    """A container of some of these and of plain weights."""

    def factory(draw: Callable[..., Any], sizes: Sizes | None = None) -> HyperNet:
        if sizes is None:
            sizes = Sizes(draw(st.sampled_from([0, 2])), 3, draw(st.integers(1, 3)))
        parts = [make(draw, sizes) for make in draw(st.lists(st.sampled_from(inner), min_size=1, max_size=2))]
        uncond = draw(st.sampled_from([[], [[2]], [[], [3, 1]]]))
        cond = draw(st.sampled_from([[], [[4]], [[2, 2], [2]]]))
        names = draw(st.sampled_from([None, ["bn_scale", "embedding"][: len(cond)]])) if cond else None
        shapes = [*(shape for part in parts for shape in part.target_shapes), *uncond, *cond]
        return HContainer(
            shapes, everything, parts, uncond, cond, None, names, num_cond_embs=sizes.num_conds, **externals(draw)
        )

    return factory


def wrapped(inner: Callable[..., HyperNet]) -> Callable[..., HyperNet]:
    def factory(draw: Callable[..., Any], sizes: Sizes | None = None) -> HyperNet:
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


CONTAINER = container(hmlp, chunked_hmlp, structured, chunked_hdeconv)

FACTORIES = {
    "HMLP": hmlp,
    "HDeconv": hdeconv,
    "ChunkedHMLP": chunked_hmlp,
    "ChunkedHDeconv": chunked_hdeconv,
    "StructuredHMLP": structured,
    "HContainer": CONTAINER,
    "HContainer of HContainer": container(CONTAINER, hmlp),
    "HPerturbWrapper of HMLP": wrapped(hmlp),
    "HPerturbWrapper of HDeconv": wrapped(hdeconv),
    "HPerturbWrapper of ChunkedHMLP": wrapped(chunked_hmlp),
    "HPerturbWrapper of StructuredHMLP": wrapped(structured),
    "HPerturbWrapper of HContainer": wrapped(CONTAINER),
    "HPerturbWrapper of HPerturbWrapper": wrapped(wrapped(hmlp)),
}


# ---------------------------------------------------------------------- arguments


def conditions(hnet: HyperNet) -> set[str]:
    """How a condition may be given: one or more of "none", "cond_id", "cond_input", "chunk_embs"."""
    if isinstance(hnet, HPerturbWrapper):
        return conditions(hnet.internal_hnet)
    known = {"cond_id"} if hnet.num_known_conds else set()
    if isinstance(hnet, HContainer):
        needs = [conditions(part) for part in hnet.internal_hnets]
        if hnet._num_cond or any(not need & {"none", "cond_input"} for need in needs):
            return {"cond_id"}
        return {"none"} if all(need == {"none"} for need in needs) else known | {"cond_input"}
    if getattr(hnet, "cond_chunk_embs", False):
        return known | {"chunk_embs"}
    return known | {"cond_input"} if hnet.cond_in_size else {"none"}


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
    extra: dict[str, Any] = {}
    how = draw(st.sampled_from(sorted(conditions(hnet))))
    if hnet.uncond_in_size and how != "none" and smallest == 1:
        single = draw(st.sampled_from(["uncond", "cond", None]))
        if single is not None:
            rows[single] = 1
    used: set[int] = set()
    if hnet.uncond_in_size:
        kwargs["uncond_input"] = torch.randn(rows["uncond"], hnet.uncond_in_size, dtype=dtype)
    if how == "cond_id":
        # Equal rows have no variance, so that batch norm in training mode would show nothing but rounding errors.
        if smallest == 2 and hnet.num_known_conds < rows["cond"]:
            hnet.eval()
        number = {"min_size": rows["cond"], "max_size": rows["cond"], "unique": smallest == 2 and hnet.training}
        ids = draw(st.lists(st.integers(0, hnet.num_known_conds - 1), **number))
        forms = [list, tuple, torch.tensor, lambda i: torch.tensor(i).numpy()] + [lambda i: i[0]] * (len(ids) == 1)
        kwargs["cond_id"] = draw(st.sampled_from(forms))(ids)
        used = set(ids)
    elif how == "cond_input" or (how == "chunk_embs" and hnet.cond_in_size):
        kwargs["cond_input"] = torch.randn(rows["cond"], hnet.cond_in_size, dtype=dtype)
    if how == "chunk_embs":
        inner = hnet.internal_hnet if isinstance(hnet, HPerturbWrapper) else hnet
        shapes = getattr(inner, "chunk_emb_shapes", None)
        one = [[inner.num_chunks, inner.chunk_emb_size]] if shapes is None else shapes
        tensors = [torch.randn(rows["cond"], *shape, dtype=dtype) for shape in one]
        extra["chunk_embs"] = tensors[0] if shapes is None else tensors
    if not hnet.uncond_in_size and how == "none":
        batch = 1
    weights, full = external_weights(draw, hnet, dtype, only_dict=bool(extra))
    if extra:
        weights = {**(weights or {}), **extra}
    return Call(hnet, kwargs, weights, full, batch, used, extra)


def external_weights(
    draw: Callable[..., Any], hnet: HyperNet, dtype: torch.dtype, *, only_dict: bool
) -> tuple[Any, list[Tensor]]:
    """The argument ``weights`` in one of its forms, and the complete list that it stands for."""
    table = hnet.param_table
    internal = iter(hnet.internal_params or [])
    full = [next(internal) if r.internal else random_weight(r.shape, dtype) for r in table]
    if all(record.internal for record in table):
        return None, full
    form = "dict" if only_dict else draw(st.sampled_from(["learned", "full", "dict"]))
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
