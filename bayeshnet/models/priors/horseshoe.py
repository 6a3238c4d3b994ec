"""Horseshoe priors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Size, Tensor, nn

from bayeshnet.checks import kind_of, require_positive
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.formatting import number
from bayeshnet.mnets.param_table import ParamRecord
from bayeshnet.models.priors.base import Prior
from bayeshnet.models.priors.hierarchical import checked_patterns, factors, group_shape
from bayeshnet.models.priors.normal import Normal
from bayeshnet.models.priors.scales import matches

__all__ = ["Horseshoe"]


class Horseshoe(Prior):
    r"""Few large weights among many that are nearly 0 (Carvalho, Polson and Scott, Biometrika 2010).

    .. math:: w_j \sim N(0, \tau^2 \lambda_j^2), \quad \lambda_j \sim C^+(0, 1), \quad \tau \sim C^+(0, s)

    with half-Cauchy factors: tau for each tensor, the latent site ``prior.NAME.global``, and a local one for each
    weight, or each input or unit, ``prior.NAME.local``. Regularised (Piironen and Vehtari, EJS 2017) a weight that
    escapes is shrunk like one of a Student-t slab, :math:`\lambda_j^2 c^2 / (c^2 + \tau^2 \lambda_j^2)` in place of
    :math:`\lambda_j^2`, with :math:`c^2 \sim \mathrm{InvGamma}(\nu / 2, \nu b^2 / 2)`, the site ``prior.NAME.slab``.

    Args:
        scale: Scale s of the global factor: about ``p0 / (p - p0) * noise / sqrt(n)``, if p0 of p weights are relevant
            and there are n rows.
        by: What has a local factor: ``"weight"``, ``"input"`` or ``"unit"``.
        slab: ``(df, scale)`` of the slab, nu and b; None for the plain horseshoe.
        where: Names or patterns of the parameters with this prior; all weights of two or more dimensions by default.
        others: The prior of all other parameters; ``Normal(1.0)`` by default.

    Raises:
        ArgumentError: If a number is not positive, or ``by`` is not known.
        ArgumentTypeError: If an argument is of another type.

    Example:
        >>> from bayeshnet import BayesianModel, likelihoods
        >>> model = BayesianModel(nn.Linear(20, 1), Horseshoe(0.1, slab=(4.0, 2.0)), likelihoods.Normal(scale=0.1))
        >>> {name: tuple(shape) for name, shape in list(model.latent_shapes.items())[:3]}
        {'prior.weight.global': (), 'prior.weight.local': (1, 20), 'prior.weight.slab': ()}
    """

    def __init__(
        self,
        scale: float = 1.0,
        *,
        by: Literal["weight", "input", "unit"] = "weight",
        slab: tuple[float, float] | None = None,
        where: str | Sequence[str] | None = None,
        others: Prior | None = None,
    ) -> None:
        require_positive("scale", scale)
        if by not in ("weight", "input", "unit"):
            raise ArgumentError(f"by: is {by!r}; pass 'weight', 'input' or 'unit'.")
        if slab is not None:
            if not isinstance(slab, Sequence) or len(slab) != 2:
                raise ArgumentTypeError(f"slab: is {slab!r}; pass its degrees of freedom and scale, such as (4., 2.).")
            for value in slab:
                require_positive("slab", value)
        self.others = Normal(1.0) if others is None else others
        if not isinstance(self.others, Prior):
            raise ArgumentTypeError(f"others: is {kind_of(others)}; pass one of bayeshnet.priors.")
        self.scale, self.by = float(scale), by
        self.slab = None if slab is None else (float(slab[0]), float(slab[1]))
        self.where = None if where is None else checked_patterns("where", where)

    def __repr__(self) -> str:
        slab = "" if self.slab is None else f", slab={self.slab}"
        where = "" if self.where is None else f", where={self.where}"
        return f"Horseshoe(scale={number(self.scale)}, by={self.by!r}{slab}{where}, others={self.others!r})"

    def configuration(self) -> Mapping[str, Any]:
        """See :meth:`~bayeshnet.configuration.Configured.configuration`."""
        return {**super().configuration(), "others": self.others}

    def for_network(self, net: nn.Module) -> Prior:
        """See :meth:`Prior.for_network`."""
        others = self.others.for_network(net)
        if others is self.others:
            return self
        return Horseshoe(self.scale, by=self.by, slab=self.slab, where=self.where, others=others)  # pyright: ignore[reportArgumentType] - of a literal

    def named_parameters(self) -> Mapping[str, Sequence[str]]:
        """See :meth:`Prior.named_parameters`."""
        return self.others.named_parameters()

    def factor_shape(self, name: str, record: ParamRecord) -> tuple[int, ...] | None:
        """See :meth:`Prior.factor_shape`."""
        return None if self._shrinks(name, record) else self.others.factor_shape(name, record)

    def distribution(self, name: str, record: ParamRecord, *, like: Tensor) -> TorchDistributionMixin:
        """The prior of one parameter where all factors are 1."""
        if not self._shrinks(name, record):
            return self.others.distribution(name, record, like=like)
        return Normal(1.0).distribution(name, record, like=like)

    def latents(self, params: Mapping[str, ParamRecord], *, like: Tensor) -> Mapping[str, TorchDistributionMixin]:
        """See :meth:`Prior.latents`."""
        found: dict[str, TorchDistributionMixin] = {}
        one = like.new_ones(())
        for name, record in params.items():
            if not self._shrinks(name, record):
                continue
            shape = group_shape(record, self.by)
            found[f"{name}.global"] = dist.HalfCauchy(self.scale * one)
            found[f"{name}.local"] = dist.HalfCauchy(one).expand(shape).to_event(len(shape))
            if self.slab is not None:
                df, scale = self.slab
                found[f"{name}.slab"] = dist.InverseGamma(0.5 * df * one, 0.5 * df * scale**2 * one)
        if not found:
            raise ArgumentError(f"where: {self.where} fits none of the network's parameters {list(params)}.")
        return {**found, **self.others.latents({k: v for k, v in params.items() if not self._shrinks(k, v)}, like=like)}

    def given(
        self, name: str, record: ParamRecord, latents: Mapping[str, Tensor], *, like: Tensor
    ) -> TorchDistributionMixin:
        """See :meth:`Prior.given`."""
        if not self._shrinks(name, record):
            return self.others.given(name, record, latents, like=like)
        dims = len(record.shape)
        shape = group_shape(record, self.by)
        local = factors(latents[f"{name}.local"], shape, record, self.by)
        whole = _numbers_with(latents[f"{name}.global"], dims)
        scale = whole * local
        if self.slab is not None:
            # The same as c t / sqrt(c^2 + t^2), without squares that overflow.
            scale = scale / torch.hypot(
                torch.ones_like(scale), scale / _numbers_with(latents[f"{name}.slab"], dims).sqrt()
            )
        tiny = torch.finfo(scale.dtype).tiny
        scale = scale.clamp(min=tiny).expand(*scale.shape[: scale.dim() - dims], *record.shape)
        return dist.Normal(torch.zeros_like(scale), scale).to_event(dims)

    def _shrinks(self, name: str, record: ParamRecord) -> bool:
        if self.where is None:
            return record.name == "weight" and len(record.shape) >= 2
        return matches(self.where, name)


def _numbers_with(value: Tensor, dims: int) -> Tensor:
    """Single numbers ``[*samples]`` with ``dims`` dimensions of size 1 behind."""
    return value.reshape(*value.shape, *Size((1,) * dims))
