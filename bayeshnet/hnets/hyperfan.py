"""Hyperfan initialisation of hypernetworks, by their heads or by their chunk embeddings.

The formulas are in :mod:`bayeshnet.fans`; the functions are public as :mod:`bayeshnet.init`, and are methods of the
networks that they can be called with.
"""

from __future__ import annotations

from dataclasses import replace

from bayeshnet.errors import UsageError
from bayeshnet.fans import HeadInit, Overrides, chunk_variances, head_inits, read_overrides, read_variance
from bayeshnet.hnets.hnet_interface import HyperNetInterface
from bayeshnet.hnets.hyperfan_chunks import ChunkedPart
from bayeshnet.hnets.hyperfan_parts import InitPlan, counted_variances, draw_parts, split_parts
from bayeshnet.hnets.hyperfan_targets import describe_targets
from bayeshnet.mnets.mnet_interface import MainNetInterface

__all__ = ["chunked_hyperfan_init", "hyperfan_init"]


def hyperfan_init(
    hnet: HyperNetInterface,
    method: str = "in",
    use_xavier: bool = False,
    uncond_var: float = 1.0,
    cond_var: float = 1.0,
    mnet: MainNetInterface | None = None,
    w_val: Overrides = None,
    w_var: Overrides = None,
    b_val: Overrides = None,
    b_var: Overrides = None,
) -> None:
    """Initialise so that the produced weights keep the scale of activations or gradients in the target network.

    Also a method, ``HMLP.apply_hyperfan_init``. Chang et al. 2020 (https://openreview.net/forum?id=H1lma24tPB);
    formulas: :mod:`bayeshnet.fans.variances`.

    Hidden layers get a fan-in initialisation and biases of 0, the rows of each head the variance with which weights and
    biases come out as Kaiming's or Xavier's method would draw them. Scales of batch norm and context modulation come
    out as 1, their shifts as 0, embeddings with variance 1 (through the head's bias), tensors of unknown kind with
    variance 1. The skip connection of ``linear_skip`` starts at 0. All heads share one input: with a few input entries
    the scales of all target layers vary together from one draw to the next.

    In a ``StructuredHMLP`` and an ``HContainer`` (nested ones too) the fans are those of the assembled targets,
    whatever the shapes of the chunks; a head that serves several targets gets averages, weighted by numbers of
    elements. Plain weights of a container get mean and variance of their targets. What is wrapped in an
    ``HPerturbWrapper`` is initialised as if alone: the noise adds its variance.

    Chunk embeddings of structured networks and embeddings of conditions stay as they are; the former count with their
    mean square, the latter with ``cond_var``.

    Args:
        hnet: The hypernetwork.
        method: ``"in"`` for the scale of activations, ``"out"`` for that of gradients, ``"harmonic"`` for the harmonic
            mean of the two variances.
        use_xavier: Xavier (linear units) rather than Kaiming (ReLU).
        uncond_var: Variance of the unconditional input, whose mean is taken to be 0. Ignored if there is none.
        cond_var: Variance of the conditional inputs. Ignored if there are none.
        mnet: The network that receives the weights; its ``param_shapes`` or ``hyper_shapes_learned`` are the targets.
            Without it vectors are taken for the biases of the weights just before them.
        w_val: Mean of the rows of a head: a list with a number or None per target, or a dict from names (``"weight"``,
            ``"bias"``, ``"bn_scale"``, ...) to numbers. What is not given keeps its default.
        w_var: Variance of the rows, likewise; 0 for a constant.
        b_val: Mean of the entries of the head's bias, likewise; also that of plain weights.
        b_var: Variance of the entries of the head's bias, likewise; plain weights have it in addition.

    Raises:
        ArgumentError: If the method is unknown, a variance is negative, an override does not fit, or the shapes of
            ``mnet`` are not the targets.
        ArgumentTypeError: If an argument has a type that is not accepted.
        UsageError: If weights are external, with spectral norm, if a head needs a bias that is not there, for chunked
            and deconvolutional networks, or if an assembly function does more than move weights.

    Example:
        >>> import torch
        >>> from bayeshnet.hnets import HMLP, HPerturbWrapper
        >>> hnet = HMLP([[100, 50], [100]], uncond_in_size=64, cond_in_size=0)
        >>> hyperfan_init(HPerturbWrapper(hnet))  # or hnet.apply_hyperfan_init()
        >>> weight, bias = hnet(torch.randn(1, 64))
        >>> bool(weight.var() < 1 / 50 * 2 and weight.var() > 1 / 50 / 2)
        True
    """
    parts = split_parts(hnet)
    for part in parts:
        if isinstance(part, ChunkedPart):
            raise UsageError(
                f"hyperfan_init: all targets of a {type(part.hnet).__name__} come from one head, so their variances "
                "cannot be set there; use chunked_hyperfan_init, which sets them by the chunk embeddings (and "
                "initialises what else there is by hyperfan)."
            )
    uncond_var, cond_var = counted_variances(parts, uncond_var, cond_var)
    targets = describe_targets(hnet.target_shapes, mnet)
    plan = InitPlan(
        heads=head_inits(targets, method, use_xavier, w_val=w_val, w_var=w_var, b_val=b_val, b_var=b_var),
        plain=head_inits(targets, method, use_xavier, b_val=b_val, b_var=b_var),
        uncond_var=uncond_var,
        cond_var=cond_var,
        use_xavier=use_xavier,
    )
    draw_parts(parts, plan, "hyperfan_init")


def chunked_hyperfan_init(
    hnet: HyperNetInterface,
    method: str = "in",
    use_xavier: bool = False,
    uncond_var: float = 1.0,
    cond_var: float = 1.0,
    eps: float = 1e-5,
    cemb_normal_init: bool = False,
    mnet: MainNetInterface | None = None,
    target_vars: Overrides = None,
) -> None:
    """Initialise chunked hypernetworks so that each chunk has the scale that the layers in it need.

    Also a method, ``ChunkedHMLP.apply_chunked_hyperfan_init``. All layers get a fan-in initialisation and biases of 0,
    each chunk embedding a variance of its own; formulas: :mod:`bayeshnet.fans.chunks`. The function finds chunked
    networks in wrappers and containers; what else is in a container is initialised as by :func:`hyperfan_init`. With
    transposed convolutions the variances hold on average over the pixels of a chunk: those at the edges receive fewer
    terms.

    The other inputs need a variance well below 1, which the caller has to see to: the chunk embedding can only add to
    what they make.

    Args:
        hnet: The hypernetwork.
        method: ``"in"`` for the scale of activations, ``"out"`` for that of gradients, ``"harmonic"`` for the harmonic
            mean of the two variances.
        use_xavier: Xavier (linear units) rather than Kaiming (ReLU), in the hypernetwork and for its targets.
        uncond_var: Variance of the unconditional input, whose mean is taken to be 0. Ignored if there is none.
        cond_var: Variance of the conditional inputs. Ignored if there are none.
        eps: The least variance of a chunk embedding; a warning says if it had to be used, and which variance of the
            other inputs would avoid that.
        cemb_normal_init: Draw chunk embeddings from normal rather than uniform distributions.
        mnet: The network that receives the weights; its ``param_shapes`` or ``hyper_shapes_learned`` are the targets.
            Without it vectors are taken for the biases of the weights just before them.
        target_vars: Variances of the targets: a list with a number or None per target, or a dict from names
            (``"weight"``, ``"bias"``, ...) to numbers. The default is that of ``method`` for weights, ``1 / (3 f_in)``
            for biases and 1 for everything else.

    Raises:
        ArgumentError: If the method is unknown, a variance is negative, ``target_vars`` do not fit, or the shapes of
            ``mnet`` are not the targets.
        ArgumentTypeError: If an argument has a type that is not accepted.
        UsageError: If there is no chunked network in it, with batch norm or spectral norm, if weights or chunk
            embeddings are external, or if an assembly function does more than move weights.

    Example:
        >>> from bayeshnet.hnets import ChunkedHMLP
        >>> hnet = ChunkedHMLP([[10, 40], [80, 10]], 400, uncond_in_size=8, cond_in_size=0)
        >>> chunked_hyperfan_init(hnet, uncond_var=0.01)  # or hnet.apply_chunked_hyperfan_init(uncond_var=0.01)
        >>> bounds = [(3 * (2 * 2 / fan_in - 0.01)) ** 0.5 for fan_in in (40, 10)]
        >>> [bool(c.abs().max() <= bound) for c, bound in zip(hnet.get_chunk_emb(), bounds)]
        [True, True]
    """
    parts = split_parts(hnet)
    if not any(isinstance(part, ChunkedPart) for part in parts):
        raise UsageError(
            f"chunked_hyperfan_init: there is no chunked network in this {type(hnet).__name__}; use hyperfan_init."
        )
    eps = read_variance("eps", eps)
    uncond_var, cond_var = counted_variances(parts, uncond_var, cond_var)
    targets = describe_targets(hnet.target_shapes, mnet)
    given = read_overrides("target_vars", target_vars, targets, variance=True)
    heads = [
        head if var is None else replace(HeadInit(out_var=var), bias_mean=head.bias_mean)
        for head, var in zip(head_inits(targets, method, use_xavier), given, strict=True)
    ]
    plan = InitPlan(
        heads=heads,
        plain=heads,
        uncond_var=uncond_var,
        cond_var=cond_var,
        use_xavier=use_xavier,
        chunk_vars=chunk_variances(targets, method, use_xavier, target_vars),
        eps=eps,
        normal=cemb_normal_init,
    )
    draw_parts(parts, plan, "chunked_hyperfan_init")
