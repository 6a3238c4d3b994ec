"""Hyperfan initialisation of every hypernetwork whose targets have heads of their own."""

from __future__ import annotations

from bayeshnet.errors import UsageError
from bayeshnet.hnets.hnet_interface import HyperNetInterface
from bayeshnet.hnets.hyperfan import Overrides, head_inits
from bayeshnet.hnets.hyperfan_parts import ChunkedPart, counted_variances, split_parts
from bayeshnet.hnets.hyperfan_pieces import check_parts, draw_parts
from bayeshnet.hnets.hyperfan_targets import describe_targets
from bayeshnet.mnets.mnet_interface import MainNetInterface

__all__ = ["hyperfan_init"]


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

    Chang et al. 2020 (https://openreview.net/forum?id=H1lma24tPB); formulas: :mod:`bayeshnet.hnets.hyperfan`. For an
    ``HMLP`` it is :meth:`~bayeshnet.hnets.mlp_hnet.HMLP.apply_hyperfan_init`. In a ``StructuredHMLP`` and an
    ``HContainer`` (nested ones too) the fans are those of the assembled targets, whatever the shapes of the chunks; a
    head that serves several targets gets averages, weighted by numbers of elements. Plain weights of a container get
    mean and variance of their targets. What is wrapped in an ``HPerturbWrapper`` is initialised as if alone: the noise
    adds its variance.

    Chunk embeddings of structured networks and embeddings of conditions are not touched; the former count with the mean
    square that they have, the latter with ``cond_var``.

    Args:
        hnet: The hypernetwork.
        method: ``"in"`` for the scale of activations, ``"out"`` for that of gradients, ``"harmonic"`` for the harmonic
            mean of the two variances.
        use_xavier: Xavier (linear units) rather than Kaiming (ReLU).
        uncond_var: Variance of the unconditional input, whose mean is taken to be 0. Counts only if there is one.
        cond_var: Variance that the conditional inputs have. Counts only if there are any.
        mnet: The network that receives the weights; its ``param_shapes`` or ``hyper_shapes_learned`` are the targets.
            Without it vectors are taken for the biases of the weights just before them.
        w_val: Mean of the rows of a head: a list with a number or None per target, or a dict from names (``"weight"``,
            ``"bias"``, ``"bn_scale"``, ...) to numbers. What is not given keeps its default.
        w_var: Variance of the rows, likewise; 0 for a constant.
        b_val: Mean of the entries of the head's bias, likewise; also that of plain weights.
        b_var: Variance of the entries of the head's bias, likewise; plain weights have it in addition.

    Raises:
        ValueError: If the method is unknown, a variance is negative, an override does not fit, or the shapes of
            ``mnet`` are not the targets.
        TypeError: If an argument has a type that is not accepted.
        RuntimeError: If weights are external, with spectral norm, if a head needs a bias that is not there, for chunked
            and deconvolutional networks, or if an assembly function does more than move weights.

    Example:
        >>> import torch
        >>> from bayeshnet.hnets import HMLP, HPerturbWrapper
        >>> hnet = HPerturbWrapper(HMLP([[100, 50], [100]], uncond_in_size=64, cond_in_size=0))
        >>> hyperfan_init(hnet)
        >>> weight, bias = hnet(torch.randn(1, 5100))
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
    check_parts(parts, "hyperfan_init")
    uncond_var, cond_var = counted_variances(parts, uncond_var, cond_var)
    targets = describe_targets(hnet.target_shapes, mnet)
    heads = head_inits(targets, method, use_xavier, w_val=w_val, w_var=w_var, b_val=b_val, b_var=b_var)
    plain = head_inits(targets, method, use_xavier, b_val=b_val, b_var=b_var)
    draw_parts(parts, heads, plain, uncond_var=uncond_var, cond_var=cond_var, use_xavier=use_xavier)
