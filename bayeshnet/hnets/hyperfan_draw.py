"""Drawing hyperfan initialisations into the parameters of a fully-connected hypernetwork."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bayeshnet.errors import UsageError
from bayeshnet.hnets.hyperfan import HeadInit, Overrides, counted_variance, gain, head_inits, input_variance
from bayeshnet.hnets.hyperfan_targets import describe_targets
from bayeshnet.layers.spectral_norm import SpectralNorm
from bayeshnet.mnets.mnet_interface import MainNetInterface
from bayeshnet.mnets.param_table import split_sizes

if TYPE_CHECKING:
    from bayeshnet.hnets.hnet_interface import HyperNetInterface
    from bayeshnet.hnets.mlp_hnet import HMLP

__all__ = [
    "check_bias_free",
    "check_initialisable",
    "draw_",
    "fan_in_",
    "hmlp_hyperfan_init",
    "init_hmlp",
    "linear_layers",
    "reset_batch_norm",
]


# ---------------------------------------------------------------------- building blocks


def check_initialisable(hnet: HyperNetInterface, method: str) -> None:
    """Refuse a network whose weights are elsewhere or are rescaled whenever they are used.

    Raises:
        RuntimeError: In these cases.
    """
    name = type(hnet).__name__
    if any(not record.internal and not record.conditional for record in hnet.param_table):
        raise UsageError(
            f"{method}: this {name} does not keep its unconditional weights (no_uncond_weights=True), so there is "
            "nothing to initialise. Initialise one that keeps them, and pass its `unconditional_params`."
        )
    if isinstance(hnet, nn.Module) and any(isinstance(module, SpectralNorm) for module in hnet.modules()):
        raise UsageError(
            f"{method}: with use_spectral_norm=True the weights of this {name} are divided by their largest singular "
            "value, so their initial variance has no effect; build it with use_spectral_norm=False."
        )


def check_bias_free(hnet: HMLP, heads: Sequence[HeadInit]) -> None:
    """Refuse heads that need a bias where there is none.

    Raises:
        RuntimeError: If there is such a head.
    """
    for head, target in zip(heads, hnet.target_shapes, strict=True):
        if head.needs_bias and not hnet.has_bias:
            raise UsageError(
                f"hyperfan: a target of shape {target} is to start with mean {head.bias_mean:g} and variance "
                f"{head.bias_var:g} through the bias of its head, but this {type(hnet).__name__} has no biases. Build "
                "it with use_bias=True, or override: b_val=0, b_var=0 and a w_var for this tensor."
            )


@torch.no_grad()
def draw_(tensor: Tensor, mean: float, var: float) -> None:
    """Fill a tensor with uniform draws of this mean and variance; a variance of 0 is a constant.

    Example:
        >>> weight = torch.empty(2)
        >>> draw_(weight, 0.5, 0.0)
        >>> weight
        tensor([0.5000, 0.5000])
    """
    half = math.sqrt(3 * var)
    if half == 0:
        tensor.fill_(mean)
    else:
        tensor.uniform_(mean - half, mean + half)


def fan_in_(weight: Tensor, c: float, fan_in: float | None = None) -> None:
    """Fan-in initialisation: uniform with mean 0 and variance ``c / fan_in``.

    Args:
        weight: Matrix ``[out, in]``, or a kernel together with its fan-in.
        c: The gain, squared.
        fan_in: Number of terms that one output sums over; by default the matrix's.
    """
    draw_(weight, 0.0, c / (weight.shape[1] if fan_in is None else fan_in))


@torch.no_grad()
def reset_batch_norm(hnet: HyperNetInterface) -> None:
    """Make the affine part of a network's batch norm the identity."""
    named = zip((record for record in hnet.param_table if record.internal), hnet.internal_params or (), strict=True)
    for record, param in named:
        if record.name in ("bn_scale", "bn_shift"):
            param.fill_(1.0 if record.name == "bn_scale" else 0.0)


def linear_layers(hnet: HMLP) -> tuple[list[Tensor], Tensor, Tensor | None]:
    """The matrices of the hidden layers, of the head, and of the skip connection."""
    names = [record for record in hnet.param_table if record.name == "weight"]
    matrices = hnet.layer_weight_tensors
    # The skip shares the number of the output layer, of which it is a part.
    if len(names) > 1 and names[-1].layer == names[-2].layer:
        return matrices[:-2], matrices[-2], matrices[-1]
    return matrices[:-1], matrices[-1], None


@torch.no_grad()
def _init_hidden_layers(hnet: HMLP, use_xavier: bool) -> None:
    """Fan-in initialisation of all layers but the last; biases and the skip are 0, batch norm the identity."""
    hidden, _, skip = linear_layers(hnet)
    for matrix in hidden:
        fan_in_(matrix, gain(use_xavier))
    for bias in hnet.layer_bias_vectors:
        bias.zero_()
    if skip is not None:
        skip.zero_()
    reset_batch_norm(hnet)


def init_hmlp(
    hnet: HMLP,
    heads: Sequence[HeadInit],
    inputs: Sequence[tuple[int, float]],
    use_xavier: bool,
    convert: Callable[[Sequence[HeadInit]], Sequence[HeadInit]] | None = None,
) -> None:
    """Draw all layers of a fully-connected hypernetwork.

    Fan-in initialisation passes the mean square v of the input on to the head. Batch norm replaces it: a whitened
    activation has mean square 1, and half of it behind a ReLU.

    Args:
        hnet: The network.
        heads: How to draw the head of each of its targets.
        inputs: Size and variance of each part of its input.
        use_xavier: Xavier rather than Kaiming.
        convert: For a network without biases: called once the hidden layers are drawn, it gives heads that do without.

    Raises:
        ValueError: If the input does not vary.
        RuntimeError: If a head needs a bias, the network has none and there is no ``convert``.
    """
    if convert is None:
        check_bias_free(hnet, heads)
    v = 1 / gain(use_xavier) if hnet.batchnorm_layers is not None else input_variance(inputs)
    _init_hidden_layers(hnet, use_xavier)
    if not hnet.has_bias and convert is not None:
        heads = convert(heads)
    sizes = split_sizes(hnet.target_shapes)
    matrix = linear_layers(hnet)[1]
    moment = matrix.shape[1] * v
    bias = hnet.layer_bias_vectors[-1].split(sizes) if hnet.has_bias else None
    for i, rows in enumerate(matrix.split(sizes)):
        head = heads[i]
        draw_(rows, head.row_mean, head.row_var + head.out_var / moment)
        if bias is not None:
            draw_(bias[i], head.bias_mean, head.bias_var)


# ---------------------------------------------------------------------- the whole


def hmlp_hyperfan_init(
    hnet: HMLP,
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
    """See :meth:`~bayeshnet.hnets.mlp_hnet.HMLP.apply_hyperfan_init`."""
    check_initialisable(hnet, "hyperfan")
    targets = describe_targets(hnet.target_shapes, mnet)
    heads = head_inits(targets, method, use_xavier, w_val=w_val, w_var=w_var, b_val=b_val, b_var=b_var)
    inputs = [
        (hnet.uncond_in_size, counted_variance("uncond_var", uncond_var, hnet.uncond_in_size)),
        (hnet.cond_in_size, counted_variance("cond_var", cond_var, hnet.cond_in_size)),
    ]
    init_hmlp(hnet, heads, inputs, use_xavier)
