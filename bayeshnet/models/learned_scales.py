"""Factors on the prior scales of a network's parameter tensors, learned with the guide."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bayeshnet.errors import ArgumentError, ArgumentTypeError

__all__ = ["LearnedScales"]


class LearnedScales(nn.Module):
    r"""Factors for the prior scales of parameter tensors, for maximum marginal likelihood.

    .. math:: w_t \sim N(\mathrm{loc}_t, (e^{\theta_t} \mathrm{scale}_t)^2)

    for each tensor t, or for each part of it that has a factor of its own. The ELBO is a lower bound of the marginal
    likelihood; where it is largest, :math:`e^{2 \theta_t}` is the mean of
    :math:`((w - \mathrm{loc}_t) / \mathrm{scale}_t)^2` under the guide. The factors start at 1.

    Args:
        shapes: Shape of each parameter tensor by name, in the order of the flat vector.
        factor_shapes: Shape of its factors, which expands to that of the tensor: ``()`` for a single one, ``(1, in)``
            for one for each input of a linear layer. Tensors that are left out keep their scale.
        like: A tensor with the dtype and device to use.

    Raises:
        ArgumentError: If the shape of factors does not expand to that of their tensor.

    Example:
        >>> from bayeshnet.models.weight_normal import WeightNormal
        >>> scales = LearnedScales({"weight": (2, 3), "bias": (2,)}, {"weight": (1, 3)}, torch.zeros(()))
        >>> start = {"weight": WeightNormal(torch.zeros(2, 3), torch.ones(2, 3)),
        ...          "bias": WeightNormal(torch.zeros(2), torch.ones(2))}
        >>> with torch.no_grad():
        ...     scales.log_factor[1] = torch.tensor(3.0).log()
        >>> scales.priors(start)["weight"].stddev.detach()[0], scales.factors()["weight"]
        (tensor([1., 3., 1.]), tensor([[1., 3., 1.]]))
    """

    def __init__(
        self, shapes: Mapping[str, Sequence[int]], factor_shapes: Mapping[str, Sequence[int]], like: Tensor
    ) -> None:
        super().__init__()
        self._shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.factor_shapes = {name: tuple(factor_shapes[name]) for name in shapes if name in factor_shapes}
        for name, shape in self.factor_shapes.items():
            whole = self._shapes[name]
            if len(shape) > len(whole) or any(n not in (1, m) for n, m in zip(shape[::-1], whole[::-1], strict=False)):
                raise ArgumentError(
                    f"prior: asks for factors of shape {shape} for parameter {name!r}, which do not expand to its "
                    f"{whole}; let factor_shape be () or have 1 or the parameter's size in each dimension."
                )
        self._sizes = [math.prod(shape) for shape in self.factor_shapes.values()]
        # One vector, not one parameter per tensor: it is one site to announce, and one tensor to optimise.
        self.log_factor = nn.Parameter(torch.zeros(sum(self._sizes), dtype=like.dtype, device=like.device))

    def _by_name(self) -> dict[str, Tensor]:
        parts = zip(self.factor_shapes.items(), self.log_factor.split(self._sizes), strict=True)
        return {name: part.reshape(shape) for (name, shape), part in parts}

    def factors(self) -> dict[str, Tensor]:
        """The factors as they are now, by the parameter's name."""
        return {name: log_factor.detach().exp() for name, log_factor in self._by_name().items()}

    def priors(self, start: Mapping[str, Any]) -> dict[str, Any]:
        """The priors of now, of those with factors 1.

        Args:
            start: One for each parameter, or one under any other name for all of them in one vector.
        """
        factors = self._by_name()
        if {name: fn.event_shape for name, fn in start.items()} == self._shapes:
            return {name: fn.scaled(factors[name]) if name in factors else fn for name, fn in start.items()}
        ((name, fn),) = start.items()
        return {name: fn.scaled(self.log_factors())}

    def log_factors(self) -> Tensor:
        """Logarithms of the factors of all weights, in the order of the flat vector; 0 for those without one."""
        factors, nothing = self._by_name(), self.log_factor.new_zeros(())
        parts = [factors.get(name, nothing).expand(shape).reshape(-1) for name, shape in self._shapes.items()]
        return torch.cat(parts)

    @staticmethod
    def check(name: str, fn: Any) -> Any:
        """The prior of a parameter, if it has a scale that can be learned.

        Raises:
            ArgumentTypeError: If it is none.
        """
        if not hasattr(fn, "scaled"):
            raise ArgumentTypeError(
                f"prior: the scale of parameter {name!r} is to be learned, which needs a prior with a scale; it "
                f"has a {type(fn).__name__}. Return a distribution with a method scaled(log_factor), such as "
                "bayeshnet.models.weight_normal.WeightNormal, or let its factor_shape be None."
            )
        return fn
