"""Parameters of a Bayesian network that are points, learned with the guide."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayeshnet.errors import ArgumentError
from bayeshnet.models.param_sites import emit_param_sites
from bayeshnet.models.parts import Roles
from bayeshnet.models.prior_rules import prior_rule, usable_prior

__all__ = ["PRIOR_OF_POINTS", "LearnedPoints", "described_roles"]

PRIOR_OF_POINTS = "net.prior"
"""The site of the log-density of learned points under their prior, which is no likelihood."""


class LearnedPoints:
    """The points of a model, announced to Pyro with their log-density under their priors.

    With a prior they are maximum a posteriori estimates: its log-density is a term of the ELBO, once, however many rows
    and particles there are.

    Args:
        net: The network, which has the points as parameters.
        roles: What each parameter is.

    Raises:
        ArgumentError: If a prior does not fit its parameter, or learns its scale.
        ArgumentTypeError: If a prior gives no distribution.

    Example:
        >>> from bayeshnet import BayesianModel, likelihoods, priors
        >>> model = BayesianModel(
        ...     nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.1), bayesian="weight", others=priors.Normal()
        ... )
        >>> bool(torch.isfinite(model.points.log_prior()))
        True
    """

    def __init__(self, net: Any, roles: Roles) -> None:
        self._roles = roles
        self.any = bool(roles.learned)
        self._priors: tuple[tuple[torch.dtype, torch.device], dict[str, TorchDistributionMixin]] | None = None
        for name, prior in roles.learned.items():
            shape_of = getattr(prior, "factor_shape", None)
            if shape_of is not None and shape_of(name, roles.records[name]) is not None:
                raise ArgumentError(
                    f"others: the prior of {name!r} learns its scale, which has no maximum together with a point; pass "
                    "a prior with a scale that is known."
                )
            latents: Any = getattr(prior, "latents", None)
            like = next(iter(net.learned_values().values())).detach().new_zeros(())
            if latents is not None and latents({name: roles.records[name]}, like=like):
                raise ArgumentError(
                    f"others: the prior of {name!r}, {type(prior).__name__}, has scales that are inferred, and a point "
                    "has none; pass a prior with a scale that is known, such as priors.Laplace or priors.StudentT."
                )
        self._net = (net,)  # no submodule
        self.has_priors = any(prior is not None for prior in roles.learned.values())
        self.log_prior()

    def described(self) -> str:
        """What is Bayesian and what is not, in a line."""
        return described_roles(self._roles)

    def values(self) -> dict[str, Tensor]:
        """The points by name."""
        net = self._net[0]
        return net.learned_values() if self.any else {}

    def log_prior(self) -> Tensor | None:
        """The log-density of the points under their priors; None if there are none."""
        if not self.has_priors:
            return None
        values = self.values()
        like = next(iter(values.values())).detach()
        key = (like.dtype, like.device)
        if self._priors is None or self._priors[0] != key:
            made: dict[str, TorchDistributionMixin] = {}
            for name, prior in self._roles.learned.items():
                if prior is not None:
                    record = self._roles.records[name]
                    fn = prior_rule(prior)(name, record, like=like.new_zeros(()))
                    made[name] = usable_prior(fn, name, record.shape, like)
            self._priors = (key, made)
        return torch.stack([fn.log_prob(values[name]) for name, fn in self._priors[1].items()]).sum()

    def emit(self) -> None:
        """Announce the points to Pyro, and add the log-density of those with a prior to that of the program."""
        if not self.any:
            return
        module: nn.Module = self._net[0]
        emit_param_sites("net", module)
        found = self.log_prior()
        if found is not None:
            unit: Any = dist.Unit(found)
            pyro.sample(PRIOR_OF_POINTS, unit, obs=found.new_empty((0,)), infer={"is_auxiliary": True})


def described_roles(roles: Roles) -> str:
    """What is Bayesian and what is not, in a line.

    Example:
        >>> from bayeshnet.models.parts import roles_of
        >>> described_roles(roles_of(nn.Linear(2, 1), "weight", None))
        "Bayesian 1 of 2 tensors, 2 of 3 numbers: ['weight']; learned ['bias']"
    """
    names = list(roles.bayesian or ())
    tensors, total = roles.size
    num = sum(roles.records[name].numel for name in names)
    points = [name for name, prior in roles.learned.items() if prior is None]
    penalised = [name for name, prior in roles.learned.items() if prior is not None]
    parts = [f"Bayesian {len(names)} of {tensors} tensors, {num:,} of {total:,} numbers: {_some(names)}"]
    parts += [f"learned {_some(points)}"] if points else []
    parts += [f"learned under a prior {_some(penalised)}"] if penalised else []
    parts += [f"frozen {_some(list(roles.frozen))}"] if roles.frozen else []
    held = tensors - len(roles.records)
    parts += [f"frozen in the network {held} tensor{'s' * (held != 1)}"] if held else []
    return "; ".join(parts)


def _some(names: list[str]) -> str:
    return f"{names}" if len(names) <= 4 else f"{names[:3]} and {len(names) - 3} more"
