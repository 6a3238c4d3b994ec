"""Initialisation of hypernetworks that produce means and standard deviations of a Gaussian over weights."""

from __future__ import annotations

from collections.abc import Sequence

from bayeshnet.errors import ArgumentError, UsageError
from bayeshnet.fans import SCALES, HeadInit, Target, chunk_variances, head_inits, read_number, read_variance
from bayeshnet.hnets.hnet_interface import HyperNetInterface
from bayeshnet.hnets.hyperfan_chunks import ChunkedPart
from bayeshnet.hnets.hyperfan_heads import HeadPart
from bayeshnet.hnets.hyperfan_parts import InitPlan, Part, PlainPart, counted_variances, draw_parts, split_parts
from bayeshnet.hnets.hyperfan_targets import describe_targets
from bayeshnet.mnets.mnet_interface import MainNetInterface

__all__ = ["gauss_hyperfan_init"]


def gauss_hyperfan_init(
    hnet: HyperNetInterface,
    mnet: MainNetInterface | None = None,
    mean_var: float = 0.003,
    rho_var: float = 0.083,
    use_xavier: bool = False,
    uncond_var: float = 1.0,
    cond_var: float = 1.0,
    keep_hyperfan_mean: bool = False,
    eps: float = 1e-5,
    *,
    rho_mean: float = 0.0,
) -> None:
    r"""Initialise a hypernetwork whose targets are ``[means..., rhos...]``, one rho for each mean.

    Also a method of every hypernetwork, ``apply_gauss_hyperfan_init``. The standard deviation of a weight is a function
    of its rho, such as softplus(rho). The defaults are about the variances of U(-0.1, 0.1) for means and of a uniform
    distribution of width 1 for rhos.

    Where each target has a head, the rows become 0 and the bias of the head gets mean and variance (uniform), so that
    all inputs give the same Gaussian at first. Without biases the rows carry both; their scale then follows from the
    moments of the head's input, measured with 20,000 inputs (:func:`bayeshnet.fans.bias_free_head`).

    In a chunked network the variances are those of the chunks, by their embeddings
    (:func:`~bayeshnet.init.chunked_hyperfan_init`), and all means are 0. A head or a chunk that serves several targets
    gets averages, weighted by numbers of elements. Plain weights of a container are drawn with mean and variance of
    their targets.

    Means of batch-norm and context-mod scales are drawn around 1 (in chunked networks around 0).

    Args:
        hnet: The hypernetwork, wrapped and nested in any way.
        mnet: The network whose weights the Gaussian is over: its ``param_shapes`` or ``hyper_shapes_learned`` are the
            first half of the targets.
        mean_var: Variance of the means.
        rho_var: Variance of the rhos.
        use_xavier: Xavier (linear units) rather than Kaiming (ReLU).
        uncond_var: Variance of the unconditional input, whose mean is taken to be 0. Ignored if there is none.
        cond_var: Variance of the conditional inputs. Ignored if there are none.
        keep_hyperfan_mean: Initialise the means by hyperfan (fan-in) instead of ``mean_var``.
        eps: The least variance of a chunk embedding.
        rho_mean: Mean of the rhos. Not for chunked networks, where the target network has to add it.

    Raises:
        ArgumentError: If the targets are not twice the same shapes or not those of ``mnet``, a variance is negative,
            or, without biases, the mean alone makes a larger variance than is asked for.
        ArgumentTypeError: If an argument has a type that is not accepted.
        UsageError: If weights are external, with spectral norm, for a plain deconvolutional network, for a
            ``rho_mean`` other than 0 where one head serves means and rhos alike, or if an assembly function does more
            than move weights.

    Example:
        >>> import torch
        >>> from bayeshnet.hnets import HMLP
        >>> hnet = HMLP([[100, 50], [100], [100, 50], [100]], uncond_in_size=8, cond_in_size=0)
        >>> gauss_hyperfan_init(hnet, rho_mean=-3.0)  # or hnet.apply_gauss_hyperfan_init(rho_mean=-3.0)
        >>> mean, _, rho, _ = hnet(torch.randn(1, 8))
        >>> bool(mean.abs().max() < 0.1 and (rho + 3).abs().max() < 0.5)
        True
    """
    mean_var, rho_var = read_variance("mean_var", mean_var), read_variance("rho_var", rho_var)
    eps, rho_mean = read_variance("eps", eps), read_number("rho_mean", rho_mean)
    means = _means(hnet, mnet)
    parts = split_parts(hnet)
    uncond_var, cond_var = counted_variances(parts, uncond_var, cond_var)
    if rho_mean != 0:
        _check_rho_mean(parts, len(means), rho_mean)
    if keep_hyperfan_mean:
        heads, chunk_vars = head_inits(means, "in", use_xavier), chunk_variances(means, "in", use_xavier)
    else:
        heads = [HeadInit(bias_mean=1.0 if t.name in SCALES else 0.0, bias_var=mean_var) for t in means]
        chunk_vars = [mean_var] * len(means)
    heads = heads + [HeadInit(bias_mean=rho_mean, bias_var=rho_var)] * len(means)

    plan = InitPlan(
        heads=heads,
        plain=heads,
        uncond_var=uncond_var,
        cond_var=cond_var,
        use_xavier=use_xavier,
        chunk_vars=chunk_vars + [rho_var] * len(means),
        eps=eps,
        spare_biases=True,
    )
    draw_parts(parts, plan, "gauss_hyperfan_init")


def _means(hnet: HyperNetInterface, mnet: MainNetInterface | None) -> tuple[Target, ...]:
    """The first half of the targets, checked to be the first half."""
    shapes = hnet.target_shapes
    half = len(shapes) // 2
    if len(shapes) % 2 or shapes[:half] != shapes[half:]:
        raise ArgumentError(
            f"hnet: its targets have the shapes {shapes}, not those of means and rhos; pass a network with the "
            "target_shapes [means..., rhos...]."
        )
    return describe_targets(shapes[:half], mnet)


def _check_rho_mean(parts: Sequence[Part], num: int, rho_mean: float) -> None:
    """Raise if rhos cannot have a mean of their own."""
    for part in parts:
        places = part.places if isinstance(part, (HeadPart, ChunkedPart)) else ()
        places = [part.places] if isinstance(part, PlainPart) else places
        goes_to_rho = [any(i >= num for i in place) for place in places]
        if isinstance(part, ChunkedPart) and any(goes_to_rho):
            raise UsageError(
                f"rho_mean: a {type(part.hnet).__name__} has one head for all its targets, so that rhos cannot have a "
                f"mean of their own there; leave it at 0 and add {rho_mean:g} to the rhos in the network that uses "
                "them."
            )
        for place, rho in zip(places, goes_to_rho, strict=True):
            if rho and any(i < num for i in place):
                raise UsageError(
                    "rho_mean: one head makes means and rhos alike, so that these cannot have a mean of their own; "
                    f"give them networks of their own, or leave it at 0 and add {rho_mean:g} to the rhos in the "
                    "network that uses them."
                )
