"""Priors with a location and a scale for each weight."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, cast

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from typing_extensions import Self

from bayeshnet.errors import ArgumentError, UsageError
from bayeshnet.formatting import value as printed
from bayeshnet.mnets.param_table import ParamRecord
from bayeshnet.models.priors.base import Prior
from bayeshnet.models.priors.scales import (
    Learn,
    Loc,
    NetworkValues,
    Scale,
    check_scales,
    expanded,
    lookup,
    scale_of_rule,
)

__all__ = ["ScaledPrior"]

_OF_THE_NET = "net"


class ScaledPrior(Prior):
    """A prior ``loc + scale * e`` with ``e`` of one family, independent of all else unless the family says so.

    Args:
        scale: Scale of each weight: a positive number; ``"fan_in"``, ``"xavier"`` or ``"kaiming"`` for weights of two
            or more dimensions, see :func:`~bayeshnet.models.priors.scales.scale_of_rule`, and 1 for everything else;
            or a mapping from parameter names or patterns to either of these or to a tensor that broadcasts to the
            parameter's shape. In a mapping the exact name counts first, then the patterns (``"*.bias"``) in their
            order. A rule gives the standard deviation, a number the family's own scale.
        loc: The centre: a number, or a mapping as for ``scale``; a network, for the values of its parameters; or
            ``"net"``, for those of the network that the model is built from. By default, and for names that a mapping
            leaves out, 0; but 1 for the scales of normalisation and context-modulation layers.
        learn: Optimise the scales with the guide, starting at ``scale`` (maximum marginal likelihood): True for one
            factor for each parameter tensor, ``"inputs"`` for one for each input of a weight ``[out, in, ...]``
            (automatic relevance determination) and one for each other tensor; or a mapping from names or patterns to
            False, True or ``"inputs"``.

    Raises:
        ArgumentError: If a scale is not positive or a number not finite, or a rule not known.
        ArgumentTypeError: If an argument is none of the above.

    Example:
        >>> import torch
        >>> from bayeshnet import priors
        >>> prior = priors.Laplace("kaiming", loc=torch.nn.Linear(8, 2))
        >>> prior
        Laplace(scale='kaiming', loc=<values of 2 parameters>)
        >>> prior.distribution("weight", ParamRecord((2, 8), "weight", 0), like=torch.zeros(())).stddev[0, 0]
        tensor(0.5000)
    """

    def __init__(
        self,
        scale: float | Tensor | str | Mapping[str, Scale] = 1.0,
        *,
        loc: Loc = None,
        learn: Learn | Mapping[str, Learn] = False,
    ) -> None:
        if isinstance(loc, nn.Module):
            loc = NetworkValues.of(loc)
        check_scales(scale, None if loc == _OF_THE_NET else loc, learn)
        self.scale = scale
        self.loc = loc
        self.learn = learn

    def __repr__(self) -> str:
        loc = "" if self.loc is None else f", loc={printed(self.loc)}"
        learn = f", learn={printed(self.learn)}" if self.learn else ""
        return f"{type(self).__name__}(scale={printed(self.scale)}{self._printed_options()}{loc}{learn})"

    def _printed_options(self) -> str:
        return ""

    @classmethod
    def centred_on(cls, net: nn.Module, **options: Any) -> Self:
        """This prior with the parameter values of a network as its centre.

        Args:
            net: A network, such as a pretrained one, of the architecture of the model's.
            options: As for the class.

        Example:
            >>> import torch
            >>> from bayeshnet import priors
            >>> priors.Normal.centred_on(torch.nn.Linear(3, 1), scale="fan_in")
            Normal(scale='fan_in', loc=<values of 2 parameters>)
        """
        return cls(**cast("Any", {**options, "loc": net}))

    def configuration(self) -> Mapping[str, Any]:
        """See :meth:`~bayeshnet.configuration.Configured.configuration`; of a network its values."""
        found = super().configuration()
        return {**found, "loc": self.loc} if "loc" in found else found

    def for_network(self, net: nn.Module) -> Prior:
        """See :meth:`Prior.for_network`."""
        if self.loc != _OF_THE_NET:
            return self
        made = copy.copy(self)
        made.loc = NetworkValues.of(net)
        return made

    def named_parameters(self) -> Mapping[str, Sequence[str]]:
        """See :meth:`Prior.named_parameters`; patterns, which serve several networks, are not among them."""
        arguments = {"scale": self.scale, "loc": self.loc, "learn": self.learn}
        mappings = {name: value for name, value in arguments.items() if isinstance(value, Mapping)}
        return {name: [key for key in value if not set(key) & set("*?[")] for name, value in mappings.items()}

    def distribution(self, name: str, record: ParamRecord, *, like: Tensor) -> TorchDistributionMixin:
        """See :meth:`Prior.distribution`."""
        return self.made(self._loc_of(name, record, like), self._scale_of(name, record, like), record)

    @abstractmethod
    def made(self, loc: Tensor, scale: Tensor, record: ParamRecord) -> TorchDistributionMixin:
        """The family's distribution of a parameter.

        Args:
            loc: Its centre, of the parameter's shape.
            scale: Its scale, of the parameter's shape.
            record: What is known of the parameter.

        Returns:
            A distribution that has the methods of :class:`~bayeshnet.models.weight_scaled.ScaledWeights`.
        """

    @property
    def unit_std(self) -> float:
        """Standard deviation of the family at scale 1, by which rules are divided; 1 where it has none."""
        return 1.0

    def _scale_of(self, name: str, record: ParamRecord, like: Tensor) -> Tensor:
        scale = lookup(self.scale, name)
        if scale is None:
            raise ArgumentError(
                f"scale: the prior's mapping has no entry for the parameter {name!r} {record.shape}; it has "
                f"{list(self.scale) if isinstance(self.scale, Mapping) else self.scale!r}. Add its name or a pattern "
                "such as '*'."
            )
        if isinstance(scale, str):
            scale = scale_of_rule(scale, record) / self.unit_std
        return expanded(scale, name, record, like, "scale")

    def _loc_of(self, name: str, record: ParamRecord, like: Tensor) -> Tensor:
        if self.loc == _OF_THE_NET:
            raise UsageError(
                "loc: 'net' is the network that a model is built from; without a model pass the network itself."
            )
        loc = self.loc.value(name) if isinstance(self.loc, NetworkValues) else lookup(self.loc, name)
        if loc is None:
            loc = 1.0 if record.name in ("bn_scale", "cm_scale") else 0.0
        return expanded(loc, name, record, like, "loc")

    def factor_shape(self, name: str, record: ParamRecord) -> tuple[int, ...] | None:
        """See :meth:`Prior.factor_shape`."""
        learn = lookup(self.learn, name)
        if not learn:
            return None
        if learn == "inputs" and record.name == "weight" and len(record.shape) >= 2:
            axis = 0 if record.extra.get("transposed", False) else 1
            return tuple(size if i == axis else 1 for i, size in enumerate(record.shape))
        return ()
