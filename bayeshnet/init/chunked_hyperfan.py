"""Hyperfan initialisation of hypernetworks with chunked ones in them."""

from __future__ import annotations

from dataclasses import replace

from bayeshnet.errors import UsageError
from bayeshnet.hnets.hnet_interface import HyperNetInterface
from bayeshnet.hnets.hyperfan import HeadInit, Overrides, check_variance, chunk_variances, head_inits, read_overrides
from bayeshnet.hnets.hyperfan_parts import ChunkedPart, counted_variances, split_parts
from bayeshnet.hnets.hyperfan_pieces import check_parts, draw_parts
from bayeshnet.hnets.hyperfan_targets import describe_targets
from bayeshnet.mnets.mnet_interface import MainNetInterface

__all__ = ["chunked_hyperfan_init"]


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
    """Initialise chunked hypernetworks so that the produced weights have the scale that their layers need.

    For a ``ChunkedHMLP`` or ``ChunkedHDeconv`` it is
    :meth:`~bayeshnet.hnets.chunked.ChunkedHyperNet.apply_chunked_hyperfan_init`; formulas:
    :mod:`bayeshnet.hnets.hyperfan_chunked`. It finds them in wrappers and containers; what else is in a container is
    initialised as by :func:`~bayeshnet.init.hyperfan.hyperfan_init`. With transposed convolutions the variances hold
    on average over the pixels of a chunk: those at the edges receive fewer terms.

    The other inputs need a variance well below 1, which the caller has to see to: the chunk embedding can only add to
    what they make.

    Args:
        hnet: The hypernetwork.
        method: ``"in"`` for the scale of activations, ``"out"`` for that of gradients, ``"harmonic"`` for the harmonic
            mean of the two variances.
        use_xavier: Xavier (linear units) rather than Kaiming (ReLU), in the hypernetwork and for its targets.
        uncond_var: Variance of the unconditional input, whose mean is taken to be 0. Counts only if there is one.
        cond_var: Variance that the conditional inputs have. Counts only if there are any.
        eps: The least variance of a chunk embedding.
        cemb_normal_init: Draw chunk embeddings from normal rather than uniform distributions.
        mnet: The network that receives the weights; its ``param_shapes`` or ``hyper_shapes_learned`` are the targets.
            Without it vectors are taken for the biases of the weights just before them.
        target_vars: Variances of the targets: a list with a number or None per target, or a dict from names
            (``"weight"``, ``"bias"``, ...) to numbers. The default is that of ``method`` for weights, ``1 / (3 f_in)``
            for biases and 1 for everything else.

    Raises:
        ValueError: If the method is unknown, a variance is negative, ``target_vars`` do not fit, or the shapes of
            ``mnet`` are not the targets.
        TypeError: If an argument has a type that is not accepted.
        RuntimeError: If there is no chunked network in it, with batch norm or spectral norm, if weights are external,
            or if an assembly function does more than move weights.

    Example:
        >>> import torch
        >>> from bayeshnet.hnets import HPerturbWrapper
        >>> from bayeshnet.hnets.chunked_mlp_hnet import ChunkedHMLP
        >>> hnet = ChunkedHMLP([[100, 50]], 500, uncond_in_size=32, cond_in_size=0, chunk_emb_size=32)
        >>> chunked_hyperfan_init(HPerturbWrapper(hnet), uncond_var=0.01)
        >>> (weight,) = hnet(0.1 * torch.randn(1, 32))
        >>> bool(1 / 50 < weight.var() < 4 / 50)
        True
    """
    parts = split_parts(hnet)
    if not any(isinstance(part, ChunkedPart) for part in parts):
        raise UsageError(
            f"chunked_hyperfan_init: there is no chunked network in this {type(hnet).__name__}; use hyperfan_init."
        )
    check_parts(parts, "chunked_hyperfan_init")
    eps = check_variance("eps", eps)
    uncond_var, cond_var = counted_variances(parts, uncond_var, cond_var)
    targets = describe_targets(hnet.target_shapes, mnet)
    given = read_overrides("target_vars", target_vars, targets, variance=True)
    heads = [
        head if var is None else replace(HeadInit(out_var=var), bias_mean=head.bias_mean)
        for head, var in zip(head_inits(targets, method, use_xavier), given, strict=True)
    ]
    draw_parts(
        parts,
        heads,
        heads,
        uncond_var=uncond_var,
        cond_var=cond_var,
        use_xavier=use_xavier,
        chunk_vars=chunk_variances(targets, method, use_xavier, target_vars),
        eps=eps,
        normal=cemb_normal_init,
    )
