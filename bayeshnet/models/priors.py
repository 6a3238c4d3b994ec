"""Priors over the weights of a network."""

from __future__ import annotations

import fnmatch
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bayeshnet.checks import kind_of
from bayeshnet.configuration import Configured
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.fans import fan_in_and_out
from bayeshnet.formatting import value as printed
from bayeshnet.mnets.param_table import ParamRecord
from bayeshnet.models.weight_normal import WeightNormal

__all__ = ["Normal", "Prior"]

Scale: TypeAlias = "float | Tensor | str"
Learn: TypeAlias = "bool | Literal['inputs']"


class Prior(Configured, ABC):
    """Gives the prior of each parameter tensor of a network.

    Subclasses implement :meth:`distribution`; a plain function with its signature serves as well.

    Example:
        >>> class Wide(Prior):
        ...     def distribution(self, name, record, *, like):
        ...         return WeightNormal(like.new_zeros(record.shape), like.new_full(record.shape, 10.0))
        >>> Wide().distribution("bias", ParamRecord((2,)), like=torch.zeros(())).stddev
        tensor([10., 10.])
    """

    configured_as = "prior"

    @abstractmethod
    def distribution(self, name: str, record: ParamRecord, *, like: Tensor) -> TorchDistributionMixin:
        """The prior of one parameter.

        Args:
            name: The parameter's dotted name, such as ``"0.weight"``.
            record: What is known of it: shape, kind, layer.
            like: A tensor with the dtype and device to use.

        Returns:
            A distribution with empty ``batch_shape`` and ``event_shape`` equal to the record's shape.
        """

    def factor_shape(self, name: str, record: ParamRecord) -> tuple[int, ...] | None:
        """Shape of the factors that a model learns for the scale of one parameter; None keeps the scale.

        It has to expand to the parameter's shape, and :meth:`distribution`, which is then the start, has to return a
        :class:`~bayeshnet.models.weight_normal.WeightNormal`.
        """
        return None

    def named_parameters(self) -> Mapping[str, Sequence[str]]:
        """Parameters that an argument mentions by their exact names, which a network then has to have."""
        return {}


class Normal(Prior):
    """Independent Gaussian weights, ``w ~ N(loc, scale^2)``.

    Args:
        scale: The standard deviation: a positive number; ``"fan_in"`` (weights get ``1 / sqrt(fan_in)``, so that
            pre-activations have unit variance whatever the width; biases and everything else 1); or a mapping from
            parameter names or patterns to either of these or to a tensor of the parameter's shape. In a mapping the
            exact name counts first, then the patterns (``"*.bias"``) in their order.
        loc: The mean: a number, or a mapping as for ``scale``. By default, and for names that a mapping leaves out, 0;
            but 1 for the scales of normalisation and context-modulation layers, which multiply activations.
        learn: Optimise the scales with the guide, starting at ``scale`` (maximum marginal likelihood): True for one
            factor for each parameter tensor, ``"inputs"`` for one for each input of a weight ``[out, in, ...]``
            (automatic relevance determination) and one for each other tensor; or a mapping from names or patterns to
            False, True or ``"inputs"``. The factors are parameters of the model that uses the prior, see
            :attr:`~bayeshnet.BayesianModel.scale_factors`; two models never share them.

    Raises:
        ArgumentError: If a scale is not positive or a number not finite; or (when a model is built) a mapping leaves a
            parameter out, or a number is out of the range of the network's dtype.
        ArgumentTypeError: If an argument is none of the above.

    Example:
        >>> prior = Normal(scale={"*.weight": "fan_in", "*.bias": 0.5})
        >>> prior.distribution("0.weight", ParamRecord((8, 4), "weight", 0), like=torch.zeros(())).base_dist.scale[0, 0]
        tensor(0.5000)
    """

    def __init__(
        self,
        scale: float | Tensor | str | Mapping[str, Scale] = 1.0,
        *,
        loc: float | Tensor | Mapping[str, float | Tensor] | None = None,
        learn: Learn | Mapping[str, Learn] = False,
    ) -> None:
        for argument, given in (("scale", scale), ("loc", loc), ("learn", learn)):
            for key in given if isinstance(given, Mapping) else ():
                if not isinstance(key, str):
                    raise ArgumentTypeError(
                        f"{argument}: has the key {key!r}, {kind_of(key)}; pass names of parameters or patterns."
                    )
        for key, value in scale.items() if isinstance(scale, Mapping) else [("", scale)]:
            _check_scale(value, f"scale[{key!r}]" if key else "scale")
        for key, value in loc.items() if isinstance(loc, Mapping) else [("", 0.0 if loc is None else loc)]:
            _check_loc(value, f"loc[{key!r}]" if key else "loc")
        for value in learn.values() if isinstance(learn, Mapping) else [learn]:
            if not (isinstance(value, bool) or value == "inputs"):
                raise ArgumentError(f"learn: is {value!r}; pass False, True or 'inputs', or a mapping to these.")
        self.scale = scale
        self.loc = loc
        self.learn = learn

    def __repr__(self) -> str:
        loc = "" if self.loc is None else f", loc={printed(self.loc)}"
        learn = f", learn={printed(self.learn)}" if self.learn else ""
        return f"Normal(scale={printed(self.scale)}{loc}{learn})"

    def named_parameters(self) -> Mapping[str, Sequence[str]]:
        """See :meth:`Prior.named_parameters`; patterns, which serve several networks, are not among them."""
        arguments = {"scale": self.scale, "loc": self.loc, "learn": self.learn}
        mappings = {name: value for name, value in arguments.items() if isinstance(value, Mapping)}
        return {name: [key for key in value if not set(key) & set("*?[")] for name, value in mappings.items()}

    def distribution(self, name: str, record: ParamRecord, *, like: Tensor) -> TorchDistributionMixin:
        """See :meth:`Prior.distribution`."""
        scale = _lookup(self.scale, name)
        if scale is None:
            raise ArgumentError(
                f"scale: the prior's mapping has no entry for the parameter {name!r} {record.shape}; it has "
                f"{list(self.scale) if isinstance(self.scale, Mapping) else self.scale!r}. Add its name or a pattern "
                "such as '*'."
            )
        loc = _lookup(self.loc, name)
        if loc is None:
            loc = 1.0 if record.name in ("bn_scale", "cm_scale") else 0.0
        if isinstance(scale, str):
            scale = _fan_in_scale(record)
        full_scale = _expanded(scale, name, record, like, "scale")
        full_loc = _expanded(loc, name, record, like, "loc")
        return WeightNormal(full_loc, full_scale)

    def factor_shape(self, name: str, record: ParamRecord) -> tuple[int, ...] | None:
        """See :meth:`Prior.factor_shape`."""
        learn = _lookup(self.learn, name)
        if not learn:
            return None
        if learn == "inputs" and record.name == "weight" and len(record.shape) >= 2:
            axis = 0 if record.extra.get("transposed", False) else 1
            return tuple(size if i == axis else 1 for i, size in enumerate(record.shape))
        return ()


def _check_scale(value: object, where: str) -> None:
    if isinstance(value, str):
        if value != "fan_in":
            raise ArgumentError(f"{where}: is {value!r}; the only rule known by name is 'fan_in'.")
    elif isinstance(value, Tensor):
        _check_real(value, where)
        if not bool((value > 0).all()) or not bool(torch.isfinite(value).all()):
            raise ArgumentError(f"{where}: a standard deviation has to be positive and finite everywhere.")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if not (value > 0 and math.isfinite(value)):
            raise ArgumentError(f"{where}: is {value}; a standard deviation has to be positive and finite.")
    else:
        raise ArgumentTypeError(
            f"{where}: is {kind_of(value)}; pass a positive number, a tensor, 'fan_in', or a mapping from "
            "parameter names to these."
        )


def _check_loc(value: object, where: str) -> None:
    if not isinstance(value, int | float | Tensor) or isinstance(value, bool):
        raise ArgumentTypeError(f"{where}: is {kind_of(value)}; pass a number or a tensor.")
    if isinstance(value, Tensor):
        _check_real(value, where)
    finite = bool(torch.isfinite(value).all()) if isinstance(value, Tensor) else math.isfinite(value)
    if not finite:
        given = "has entries that are not finite" if isinstance(value, Tensor) else f"is {value}"
        raise ArgumentError(f"{where}: {given}; a mean has to be finite.")


def _check_real(value: Tensor, where: str) -> None:
    if value.is_complex() or value.dtype == torch.bool:
        raise ArgumentTypeError(f"{where}: is a tensor of {value.dtype}; pass real numbers.")


def _lookup(value: object, name: str) -> float | Tensor | str | None:
    if not isinstance(value, Mapping):
        return value  # pyright: ignore[reportReturnType]
    if name in value:
        return value[name]
    return next((v for pattern, v in value.items() if fnmatch.fnmatchcase(name, pattern)), None)


def _expanded(value: float | Tensor | str, name: str, record: ParamRecord, like: Tensor, argument: str) -> Tensor:
    tensor = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    # 1e300 is infinite in float32 and 1e-60 is 0; of 1e-40 the reciprocal, by which weights are whitened, is infinite.
    usable = torch.isfinite(tensor) if argument == "loc" else torch.isfinite(tensor) & torch.isfinite(1.0 / tensor)
    if not bool(usable.all()):
        given = torch.as_tensor(value, dtype=torch.float64, device=like.device)[~usable].flatten()[0]
        raise ArgumentError(
            f"{argument}: {float(given):g} for parameter {name!r} is out of the range of {like.dtype}, the network's "
            "dtype; pass numbers in its range, or convert the network to float64."
        )
    try:
        return tensor.expand(record.shape)
    except RuntimeError:
        raise ArgumentError(
            f"{argument}: the tensor for parameter {name!r} has shape {tuple(tensor.shape)}, which does not broadcast "
            f"to the parameter's {record.shape}."
        ) from None


def _fan_in_scale(record: ParamRecord) -> float:
    if record.name != "weight" or len(record.shape) < 2:
        return 1.0
    fan_in, _ = fan_in_and_out(record.shape, transposed=bool(record.extra.get("transposed", False)))
    return 1.0 / math.sqrt(fan_in)
