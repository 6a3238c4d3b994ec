"""Priors whose scales are latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Size, Tensor, nn

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.formatting import value as printed
from bayeshnet.mnets.param_table import ParamRecord
from bayeshnet.models.data_checks import check_positive_support
from bayeshnet.models.moved import moved
from bayeshnet.models.priors.base import Prior
from bayeshnet.models.priors.normal import Normal
from bayeshnet.models.priors.scaled import ScaledPrior
from bayeshnet.models.priors.scales import matches
from bayeshnet.models.weight_scaled import scaled_by

__all__ = ["By", "Hierarchical", "factors", "group_shape"]

By = Literal["network", "layer", "tensor", "unit", "input", "weight"]


class Hierarchical(Prior):
    r"""Weights with scales that are inferred: :math:`w = \mathrm{loc} + \tau s e`, with a prior on the factors tau.

    The factors are latent sites ``prior.NAME.scale`` before the weights; s, loc and e are those of ``base``.

    Args:
        scale: Prior of each factor, over positive numbers; ``dist.HalfNormal(1.)`` by default.
        by: What has a factor of its own: ``"network"``, ``"layer"`` (the weights and biases of a module), ``"tensor"``,
            ``"unit"`` (an output of a layer), ``"input"`` (automatic relevance determination, for weights; other
            tensors have one each) or ``"weight"``.
        base: The prior that is scaled; ``Normal("fan_in")`` by default. Its scales are not learned.
        where: Names or patterns of the parameters that are scaled; the others have ``base`` as it is.

    Raises:
        ArgumentError: If ``scale`` has a shape or may be negative, ``base`` learns its scales, or ``by`` is not known.
        ArgumentTypeError: If ``scale`` is no distribution of Pyro, or ``base`` no prior with scales.

    Example:
        >>> from bayeshnet import BayesianModel, likelihoods
        >>> prior = Hierarchical(dist.HalfNormal(1.0), by="unit", where="*.weight")
        >>> prior
        Hierarchical(HalfNormal(1), by='unit', base=Normal(scale='fan_in'), where=('*.weight',))
        >>> net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> model = BayesianModel(net, prior, likelihoods.Normal(scale=0.1))
        >>> {name: tuple(shape) for name, shape in list(model.latent_shapes.items())[:3]}
        {'prior.0.weight.scale': (8,), 'prior.2.weight.scale': (1,), '0.weight': (8, 2)}
    """

    def __init__(
        self,
        scale: TorchDistributionMixin | None = None,
        *,
        by: By = "tensor",
        base: ScaledPrior | None = None,
        where: str | Sequence[str] = "*",
    ) -> None:
        self.scale: Any = checked_scale("scale", dist.HalfNormal(1.0) if scale is None else scale)
        if by not in get_args(By):
            raise ArgumentError(f"by: is {by!r}; pass one of {', '.join(map(repr, get_args(By)))}.")
        self.base = Normal("fan_in") if base is None else base
        if not isinstance(self.base, ScaledPrior):
            raise ArgumentTypeError(
                f"base: is {kind_of(base)}; pass a prior with scales: priors.Normal, Laplace, StudentT, ScaleMixture "
                "or CorrelatedFilters."
            )
        if self.base.learn:
            raise ArgumentError("base: has learn=, but its scales are inferred already; leave learn out.")
        self.by: By = by
        self.where = checked_patterns("where", where)

    def __repr__(self) -> str:
        where = "" if self.where == ("*",) else f", where={self.where}"
        return f"Hierarchical({printed(self.scale)}, by={self.by!r}, base={self.base!r}{where})"

    def configuration(self) -> Mapping[str, Any]:
        """See :meth:`~bayeshnet.configuration.Configured.configuration`."""
        return {**super().configuration(), "scale": self.scale, "base": self.base}

    def for_network(self, net: nn.Module) -> Prior:
        """See :meth:`Prior.for_network`."""
        base = self.base.for_network(net)
        if base is self.base:
            return self
        return Hierarchical(self.scale, by=self.by, base=base, where=self.where)  # pyright: ignore[reportArgumentType] - of the same class

    def named_parameters(self) -> Mapping[str, Sequence[str]]:
        """See :meth:`Prior.named_parameters`."""
        return self.base.named_parameters()

    def distribution(self, name: str, record: ParamRecord, *, like: Tensor) -> TorchDistributionMixin:
        """The prior of one parameter where all factors are 1."""
        return self.base.distribution(name, record, like=like)

    def latents(self, params: Mapping[str, ParamRecord], *, like: Tensor) -> Mapping[str, TorchDistributionMixin]:
        """See :meth:`Prior.latents`."""
        fn = moved(self.scale, like)
        found: dict[str, TorchDistributionMixin] = {}
        for name, record in params.items():
            if matches(self.where, name):
                shape = self._event_shape(record)
                found.setdefault(self._key(name), fn.expand(shape).to_event(len(shape)))
        if not found:
            raise ArgumentError(f"where: {self.where} fits none of the network's parameters {list(params)}.")
        return found

    def given(
        self, name: str, record: ParamRecord, latents: Mapping[str, Tensor], *, like: Tensor
    ) -> TorchDistributionMixin:
        """See :meth:`Prior.given`."""
        fn = self.base.distribution(name, record, like=like)
        if not matches(self.where, name):
            return fn
        return scaled_by(fn, factors(latents[self._key(name)], self._event_shape(record), record, self.by))

    def _key(self, name: str) -> str:
        if self.by == "network":
            return "scale"
        if self.by == "layer":
            return f"{name.rpartition('.')[0]}.scale".removeprefix(".")
        return f"{name}.scale"

    def _event_shape(self, record: ParamRecord) -> Size:
        return Size() if self.by in ("network", "layer") else group_shape(record, self.by)


def checked_scale(argument: str, scale: Any) -> Any:
    """The prior of a scale, if it is a distribution of one positive number.

    Example:
        >>> checked_scale("scale", dist.HalfCauchy(1.0)).scale
        tensor(1.)
    """
    if not isinstance(scale, TorchDistributionMixin):
        raise ArgumentTypeError(
            f"{argument}: is {kind_of(scale)}; pass a distribution of pyro.distributions over positive numbers, such "
            "as dist.HalfNormal(1.)."
        )
    check_positive_support(scale, argument)  # pyright: ignore[reportArgumentType] - it is both
    shape = tuple(scale.batch_shape + scale.event_shape)
    if shape:
        raise ArgumentError(
            f"{argument}: has shape {shape}; pass the distribution of one number, `by` says of how many."
        )
    return scale


def checked_patterns(argument: str, given: str | Sequence[str]) -> tuple[str, ...]:
    """Patterns in a tuple.

    Example:
        >>> checked_patterns("where", "*.weight")
        ('*.weight',)
    """
    found = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Sequence) else ()
    if not found or not all(isinstance(part, str) for part in found):
        raise ArgumentTypeError(f"{argument}: is {given!r}; pass a name, a pattern such as '*.weight', or several.")
    return found


def group_shape(record: ParamRecord, by: str) -> Size:
    """Shape of the factors of one parameter: ``[out]`` by unit, ``[in]`` by input, its own by weight, else one.

    Example:
        >>> record = ParamRecord((8, 4, 3, 3), "weight", 0)
        >>> group_shape(record, "unit"), group_shape(record, "input")
        (torch.Size([8]), torch.Size([4]))
    """
    shape = Size(record.shape)
    if by == "weight":
        return shape
    if by == "unit" and shape:
        return Size((shape[_axis(record, by)],))
    if by == "input" and len(shape) >= 2 and record.name == "weight":
        return Size((shape[_axis(record, by)],))
    return Size()


def _axis(record: ParamRecord, by: str) -> int:
    if len(record.shape) < 2 or record.name != "weight":
        return 0
    transposed = bool(record.extra.get("transposed", False))
    return int(transposed) if by == "unit" else int(not transposed)


def factors(value: Tensor, event: Size, record: ParamRecord, by: str) -> Tensor:
    """Factors ``[*samples, *event]`` in a shape ``[*samples, ...]`` that expands to that of the parameter.

    Example:
        >>> import torch
        >>> factors(torch.ones(5, 8), Size((8,)), ParamRecord((8, 4), "weight", 0), "unit").shape
        torch.Size([5, 8, 1])
    """
    dims = len(record.shape)
    lead = value.shape[: value.dim() - len(event)]
    if len(event) == dims and (by == "weight" or dims <= 1):
        return value
    view = [1] * dims
    if event:
        view[_axis(record, by)] = event[0]
    return value.reshape(*lead, *view)
