"""How much each observation counts: weights of rows and of entries, and entries that are missing."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from pyro.infer.util import is_validation_enabled
from torch import Size, Tensor

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError

__all__ = ["Weighted", "check_missing", "data_plate", "observed", "point_of", "row_data", "row_weight"]

_OPTIONS = {"noise": "per_row=True", "exposure": "exposure=True"}


class Weighted(TorchDistribution):
    r"""A distribution whose log-density is multiplied by weights: :math:`w \log p(y)`, exactly 0 where w is 0.

    It is no distribution any more, and is used for observed values only. A weight of 0 takes an observation out,
    together with its gradient.

    Args:
        base_dist: The distribution.
        weight: Factors, zero or positive, of a shape that expands to the distribution's batch shape.

    Example:
        >>> import pyro.distributions as dist
        >>> fn = Weighted(dist.Normal(torch.zeros(3), 1.0), torch.tensor([1.0, 0.0, 2.0]))
        >>> fn.log_prob(torch.tensor([0.0, torch.inf, 0.0]))
        tensor([-0.9189,  0.0000, -1.8379])
    """

    arg_constraints: Any = {}  # noqa: RUF012 - as torch declares it

    def __init__(self, base_dist: TorchDistributionMixin, weight: Tensor) -> None:
        self.base_dist: Any = base_dist
        self.weight = weight
        super().__init__(self.base_dist.batch_shape, self.base_dist.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """That of the distribution."""
        return self.base_dist.support

    @property
    def has_rsample(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the distribution has reparameterised draws."""
        return self.base_dist.has_rsample

    def expand(self, batch_shape: Any, _instance: Any = None) -> Weighted:
        """The same for every place of ``batch_shape``."""
        shape = Size(batch_shape)
        return type(self)(self.base_dist.expand(shape), self.weight.expand(shape))

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        """Draws of the distribution itself."""
        return self.base_dist.sample(sample_shape)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        """Reparameterised draws of the distribution itself."""
        return self.base_dist.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """The weighted log-density."""
        log_prob = self.base_dist.log_prob(value)
        weight = self.weight.to(log_prob.dtype)
        return torch.where(weight > 0, log_prob * weight, log_prob.new_zeros(()))


def observed(
    conditional: TorchDistributionMixin,
    y: Tensor,
    *,
    entry_weight: Tensor | None = None,
    row_weight: Tensor | None = None,
    ignore_missing: bool = False,
) -> tuple[TorchDistributionMixin, Tensor]:
    """The distribution that scores observations with their weights, and observations without gaps.

    Args:
        conditional: Their distribution, ``batch_shape`` ``[*samples, B]``.
        y: Observations ``[B, ...]``.
        entry_weight: Factors of each entry, in the shape of ``y``.
        row_weight: Factors of each row ``[B]``.
        ignore_missing: Whether entries that are NaN are left out: masked where the entries of a row are independent,
            else marginalised if the distribution has a method ``marginal_log_prob``.

    Raises:
        ArgumentError: If entries are missing, and the distribution is one over whole rows that cannot leave them out.

    Example:
        >>> import pyro.distributions as dist
        >>> fn, y = observed(dist.Normal(torch.zeros(2, 3), 1.0).to_event(1), torch.full((2, 3), torch.nan),
        ...                  ignore_missing=True)
        >>> fn.log_prob(y)
        tensor([0., 0.])
    """
    weights = [] if entry_weight is None else [entry_weight]
    missing = torch.isnan(y) if ignore_missing and y.is_floating_point() else None
    if missing is not None and bool(missing.any()) and not getattr(conditional, "marginalises", False):
        # Any point that the distribution allows: the density is computed there, and counts 0.
        y = torch.where(missing, point_of(conditional).to(y), y)
        weights.append((~missing).to(y.dtype))
    if weights:
        conditional = _entries_weighted(conditional, torch.stack([w.to(weights[0].dtype) for w in weights]).prod(0))
    return (conditional if row_weight is None else Weighted(conditional, row_weight)), y


def _entries_weighted(conditional: Any, weight: Tensor) -> TorchDistributionMixin:
    base, dims = conditional, 0
    while isinstance(base, torch.distributions.Independent):
        base, dims = base.base_dist, dims + base.reinterpreted_batch_ndims
    if len(base.event_shape):
        raise ArgumentError(
            f"y: has missing or weighted entries, but {type(base).__name__} is a distribution over whole rows; leave "
            "out or weigh rows as a whole (weight=), or use a likelihood with independent outputs."
        )
    return Weighted(base, weight).to_event(dims)


def data_plate(rows: int, size: int | None, given: pyro.plate | None = None) -> pyro.plate:
    """The plate of the observations: these rows, which may stand for more.

    Args:
        rows: Number of rows at hand.
        size: Number of all rows; None if these are all.
        given: The plate of the rows in a larger program, which is then used, with the number of all rows that it has.

    Raises:
        ArgumentError: If there are more rows than all, or the plate has another number of rows or another place.
        ArgumentTypeError: If ``given`` is no plate.

    Example:
        >>> with data_plate(3, 12) as chosen:
        ...     chosen
        tensor([0, 1, 2])
    """
    if given is not None:
        return _given_plate(given, rows)
    if size is None or size == rows:
        return pyro.plate("data", rows, dim=-1)
    if size < rows:
        raise ArgumentError(f"dataset_size: is {size}, but a batch of {rows} rows was given; pass the full size.")
    # Given indices keep Pyro from drawing a random subset: the rows were chosen by the caller.
    return pyro.plate("data", size, subsample=torch.arange(rows), dim=-1)


def _given_plate(plate: Any, rows: int) -> pyro.plate:
    if not isinstance(plate, pyro.plate):
        raise ArgumentTypeError(f"plate: is {kind_of(plate)}; pass pyro.plate('rows', {rows}, dim=-1), or None.")
    if plate.subsample_size != rows or plate.dim not in (None, -1):
        place = "no place yet" if plate.dim is None else f"the place {plate.dim}"
        raise ArgumentError(
            f"plate: {plate.name!r} has {plate.subsample_size} rows and {place}, and there are {rows} rows of x; pass "
            "a plate of as many with dim=-1."
        )
    return plate


def check_missing(missing: Any) -> None:
    """Raise unless this says what to do with targets that are missing: ``"ignore"`` or ``"refuse"``.

    Raises:
        ArgumentError: If it is something else.

    Example:
        >>> check_missing("ignore")
    """
    if missing not in ("refuse", "ignore"):
        raise ArgumentError(f"missing: is {missing!r}; pass 'ignore', which leaves out NaN targets, or 'refuse'.")


def point_of(fn: Any) -> Tensor:
    """A value that a distribution can take, of its shape, without drawing one.

    Example:
        >>> import pyro.distributions as dist
        >>> point_of(dist.Beta(2.0, 3.0)), point_of(dist.Poisson(3.0)), point_of(dist.Uniform(2.0, 4.0))
        (tensor(0.5000), tensor(0.), tensor(3.))
    """
    shape = fn.batch_shape + fn.event_shape
    base: Any = fn.support
    while isinstance(base, constraints.independent) or type(base).__name__ == "MixtureSameFamilyConstraint":
        base = base.base_constraint
    zeros = torch.zeros(shape)
    if base.is_discrete:
        return zeros + getattr(base, "lower_bound", 0)
    lower, upper = getattr(base, "lower_bound", -torch.inf), getattr(base, "upper_bound", torch.inf)
    if isinstance(lower, Tensor) or isinstance(upper, Tensor):  # of which some may be infinite
        return zeros.clamp(min=torch.as_tensor(lower), max=torch.as_tensor(upper))
    return torch.distributions.transform_to(base)(zeros).expand(shape)


def row_weight(weight: Any, rows: int) -> Tensor:
    """Factors of the log-likelihood of each row, checked.

    Raises:
        ArgumentTypeError: If they are no tensor of real numbers.
        ArgumentError: If there is not one for each row, or one is negative or not finite.

    Example:
        >>> row_weight(torch.tensor([1.0, 0.0]), 2)
        tensor([1., 0.])
    """
    _check_numbers("weight", weight, least=0.0)
    if weight.shape != (rows,):
        raise ArgumentError(f"weight: has shape {tuple(weight.shape)}; pass ({rows},), one number for each row.")
    return weight


def row_data(likelihood: Any, output: Size, **given: Tensor | None) -> dict[str, Tensor]:
    """What is given with each row, checked against what a likelihood asks for; broadcasts against ``[B, *target]``.

    Args:
        likelihood: The likelihood, with its ``row_data``.
        output: Shape of the outputs of one network ``[B, ...]``, as the likelihood takes them.
        given: Positive numbers ``[B]`` or ``[B, *target]`` by name, or None.

    Raises:
        ArgumentTypeError: If some are no tensor of real numbers.
        ArgumentError: If something is missing or has no use here, has another shape, or is not positive and finite.

    Example:
        >>> from bayeshnet import likelihoods
        >>> row_data(likelihoods.Normal(scale=0.1), Size([7]), noise=None)
        {}
    """
    values = {name: value for name, value in given.items() if value is not None}
    kind = type(likelihood).__name__
    for name in likelihood.row_data:
        if name not in values:
            raise ArgumentError(
                f"{name}: the likelihood {kind} needs it; pass {name}= with every row, in training and in predictions."
            )
    for name in values:
        if name not in likelihood.row_data:
            option = f", or build the likelihood with {_OPTIONS[name]}" if name in _OPTIONS else ""
            raise ArgumentError(f"{name}: the likelihood {kind} does not take it; leave it out{option}.")
    if not values:
        return values
    target = likelihood.target_event(output[1:])
    return {name: _row_value(name, value, output[0], target) for name, value in values.items()}


def _row_value(argument: str, value: Any, rows: int, target: Size) -> Tensor:
    _check_numbers(argument, value, least=None)
    if value.shape == (rows, *target):
        return value
    if value.shape == (rows,):
        return value.reshape(rows, *(1,) * len(target))
    both = f" or {(rows, *target)}" if len(target) else ""
    raise ArgumentError(f"{argument}: has shape {tuple(value.shape)}; pass ({rows},){both}.")


def _check_numbers(argument: str, value: Any, *, least: float | None) -> None:
    kind = "numbers, zero or more" if least == 0.0 else "positive numbers"
    if not isinstance(value, Tensor) or value.is_complex() or value.dtype == torch.bool:
        given = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else kind_of(value)
        raise ArgumentTypeError(f"{argument}: is {given}; pass a tensor [B] of {kind}, one for each row.")
    # Looking at values waits for the device; fit switches Pyro's validation off after its first step.
    if is_validation_enabled():
        good = torch.isfinite(value) & (value > 0 if least is None else value >= least)
        if not bool(good.all()):
            raise ArgumentError(f"{argument}: {int((~good).sum())} of {good.numel()} entries are no finite {kind}.")
