"""Heads: with which means and variances the rows and biases of a linear head start; nothing is drawn here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from bayeshnet.errors import ArgumentError
from bayeshnet.fans.overrides import Overrides, read_overrides
from bayeshnet.fans.targets import Target
from bayeshnet.fans.variances import gain, require_method, row_variance

__all__ = ["SCALES", "HeadInit", "Moments", "bias_free_head", "head_inits"]

SCALES = ("bn_scale", "cm_scale")
"""Names of the tensors that start around 1 rather than around 0."""


@dataclass(frozen=True, slots=True)
class HeadInit:
    """How the rows and the bias entries of one head are drawn.

    All fields are means and variances, so the fields of a head that serves several targets are averages.

    Attributes:
        row_mean: Mean of the entries of the rows.
        row_var: Their variance, in addition to the one from ``out_var``.
        out_var: Variance that the rows give to the output: ``out_var / (k v)`` of their own.
        bias_mean, bias_var: Mean and variance of the bias entries.

    Example:
        >>> HeadInit.average([HeadInit(out_var=1.0), HeadInit(out_var=3.0)], {0: 0.5, 1: 0.5}).out_var
        2.0
    """

    row_mean: float = 0.0
    row_var: float = 0.0
    out_var: float = 0.0
    bias_mean: float = 0.0
    bias_var: float = 0.0

    @property
    def needs_bias(self) -> bool:
        """Whether the head asks for a bias other than 0."""
        return self.bias_mean != 0 or self.bias_var != 0

    @classmethod
    def average(cls, heads: Sequence[HeadInit], shares: Mapping[int, float]) -> HeadInit:
        """Return the average, field by field.

        Args:
            heads: The heads.
            shares: The share of each, by its index; without any the result is 0 throughout.

        Example:
            >>> HeadInit.average([HeadInit(bias_mean=1.0), HeadInit()], {0: 0.25, 1: 0.75}).bias_mean
            0.25
        """
        names = [field.name for field in fields(cls)]
        return cls(*(sum(share * getattr(heads[i], name) for i, share in shares.items()) for name in names))


def head_inits(
    targets: Sequence[Target],
    method: str = "in",
    use_xavier: bool = False,
    *,
    w_val: Overrides = None,
    w_var: Overrides = None,
    b_val: Overrides = None,
    b_var: Overrides = None,
) -> list[HeadInit]:
    """Return the hyperfan initialisation of the head of each target.

    Weights and biases get the variances of :mod:`bayeshnet.fans.variances` through their rows. Scales of batch norm and
    context modulation start at 1, their shifts at 0, embeddings with variance 1, all through the head's bias; a tensor
    of unknown kind gets variance 1 through the rows.

    Args:
        targets: The targets.
        method: One of :data:`~bayeshnet.fans.METHODS`.
        use_xavier: Xavier rather than Kaiming.
        w_val: Means of the rows, in place of the defaults.
        w_var: Variances of the rows.
        b_val: Means of the bias entries.
        b_var: Variances of the bias entries.

    Raises:
        ArgumentError: If the method is unknown, or an override does not fit.
        ArgumentTypeError: If an override is not a list or dict of numbers.

    Example:
        >>> targets = (Target((10, 5), "weight", 5, 10, has_bias=True), Target((10,), "bias", 5, 10))
        >>> head_inits(targets, w_var={"bias": 0})[1]
        HeadInit(row_mean=0.0, row_var=0.0, out_var=0.0, bias_mean=0.0, bias_var=0.0)
    """
    require_method(method)
    row_means = read_overrides("w_val", w_val, targets)
    row_vars = read_overrides("w_var", w_var, targets, variance=True)
    bias_means = read_overrides("b_val", b_val, targets)
    bias_vars = read_overrides("b_var", b_var, targets, variance=True)
    heads: list[HeadInit] = []
    for i, target in enumerate(targets):
        row_var, bias_mean, bias_var = row_vars[i], bias_means[i], bias_vars[i]
        heads.append(
            HeadInit(
                row_means[i] or 0.0,
                row_var or 0.0,
                row_variance(target, method, gain(use_xavier)) if row_var is None else 0.0,
                (1.0 if target.name in SCALES else 0.0) if bias_mean is None else bias_mean,
                (1.0 if target.name == "embedding" else 0.0) if bias_var is None else bias_var,
            )
        )
    return heads


# ---------------------------------------------------------------------- heads without biases


@dataclass(frozen=True, slots=True)
class Moments:
    """Moments of the input x of a head over the inputs of the hypernetwork.

    Attributes:
        sum_mean: E[sum_j x_j].
        sum_var: Var(sum_j x_j).
        power: E[sum_j x_j^2].
        num: Number of draws that the moments were measured with.

    Example:
        >>> Moments(sum_mean=2.0, sum_var=0.5, power=4.0, num=1000).power
        4.0
    """

    sum_mean: float
    sum_var: float
    power: float
    num: int


def bias_free_head(head: HeadInit, moments: Moments, shape: Sequence[int]) -> HeadInit:
    r"""Return a head whose rows H do what a bias w would have done.

    .. math::
        E[H] = \frac{E[w]}{E[\sum_j x_j]} \qquad
        \mathrm{Var}(H) = \frac{\mathrm{Var}(w) - E[H]^2 \mathrm{Var}(\sum_j x_j)}{E[\sum_j x_j^2]}

    Args:
        head: A head with a bias.
        moments: The moments of x.
        shape: Shape of the target, for the message.

    Raises:
        ArgumentError: If the mean alone makes a larger variance than is asked for.

    Example:
        >>> head = bias_free_head(HeadInit(bias_mean=1.0, bias_var=0.5), Moments(2.0, 1.0, 4.0, 1000), [3])
        >>> head.row_mean, head.row_var
        (0.5, 0.0625)
    """
    if not head.needs_bias:
        return head
    mean = 0.0
    if head.bias_mean:
        error = math.sqrt(moments.sum_var / moments.num)
        if abs(moments.sum_mean) <= 4 * error:
            raise ArgumentError(
                f"gauss_hyperfan_init: a target of shape {list(shape)} is to have the mean {head.bias_mean:g}, but the "
                "network has no biases and the input of its head has mean 0, so no rows can produce one; build it with "
                "use_bias=True, or give it hidden layers whose activations have a mean (ReLU)."
            )
        mean = head.bias_mean / moments.sum_mean
    least = mean**2 * moments.sum_var
    if least > head.bias_var:
        raise ArgumentError(
            f"gauss_hyperfan_init: a target of shape {list(shape)} is to have mean {head.bias_mean:g} and variance "
            f"{head.bias_var:g}, but the network has no biases, and the mean alone makes a variance of {least:.4g}, "
            "the smallest feasible one; ask for at least that, for a smaller mean, or build it with use_bias=True."
        )
    var = (head.bias_var - least) / moments.power
    return HeadInit(head.row_mean + mean, head.row_var + var, head.out_var, 0.0, 0.0)
