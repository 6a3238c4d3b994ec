"""A distribution over all weights jointly, such as that of what a hypernetwork makes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayeshnet.checks import kind_of, require_flag
from bayeshnet.configuration import Configured
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.mnets.param_table import ParamRecord

__all__ = ["JointPrior", "modules_of"]


class JointPrior(Configured, nn.Module):
    """One distribution over all weights ``[D]`` as their prior: what a hypernetwork makes of noise, for instance.

    For a model with ``flat=True``, whose site ``weights`` has it. The distribution is copied, with the modules that it
    is made of: their parameters are frozen in the copy, or learned with the guide (maximum marginal likelihood), and
    are moved and saved with the model. The density is that of the distribution, for
    :class:`~bayeshnet.ImplicitWeights` by its estimator; a guide asks for it at values that the prior did not draw, so
    take independent noise with :class:`~bayeshnet.entropy.ImportanceSampled`, for instance.

    Args:
        weights: The distribution, with event shape ``[D]``; D is the number of the network's weights.
        learn: Learn the parameters of its modules.

    Raises:
        ArgumentTypeError: If it is no distribution of Pyro.
        ArgumentError: If its event is no vector, or it has a batch shape.

    Example:
        >>> from bayeshnet import BayesianModel, HMLP, HPerturbWrapper, ImplicitWeights, likelihoods
        >>> from bayeshnet.entropy import ImportanceSampled
        >>> net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> hnet = HMLP([[4, 1], [4], [1, 4], [1]], layers=(8,), uncond_in_size=3, cond_in_size=0, verbose=False)
        >>> hnet = HPerturbWrapper(hnet, noise="independent", sigma_noise=0.3, verbose=False)
        >>> prior = JointPrior(ImplicitWeights(hnet, estimator=ImportanceSampled()))
        >>> model = BayesianModel(net, prior, likelihoods.Normal(scale=0.1), flat=True)
        >>> model.latent_shapes
        {'weights': torch.Size([13])}
    """

    configured_as = "prior"
    unrecorded = frozenset({"weights"})
    joint = True

    def __init__(self, weights: TorchDistributionMixin, *, learn: bool = False) -> None:
        super().__init__()
        require_flag("learn", learn)
        if not isinstance(weights, TorchDistributionMixin):
            raise ArgumentTypeError(
                f"weights: is {kind_of(weights)}; pass a distribution over all weights, such as ImplicitWeights(hnet)."
            )
        if len(weights.event_shape) != 1 or weights.batch_shape:
            raise ArgumentError(
                f"weights: has batch shape {tuple(weights.batch_shape)} and event shape {tuple(weights.event_shape)}; "
                "pass a distribution over one vector of all weights."
            )
        self.learn = learn
        self._weights: Any = copy.deepcopy(weights)
        self.parts = nn.ModuleList(modules_of(self._weights))
        for param in self.parts.parameters():
            if not learn:
                param.requires_grad_(False)
        if learn and not any(param.requires_grad for param in self.parts.parameters()):
            raise ArgumentError("learn: is True, and the distribution has no parameters that could be learned.")

    def __repr__(self) -> str:
        return f"JointPrior({self._weights!r}{', learn=True' * self.learn})"

    def configuration(self) -> Mapping[str, Any]:
        """See :meth:`~bayeshnet.configuration.Configured.configuration`."""
        q = self._weights
        options = {"estimator": getattr(q, "estimator", None), "loc": getattr(q, "loc", None)}
        described = {"of": type(q).__name__, "scale": getattr(q, "scale", None), **options, "parts": self.parts}
        return {**super().configuration(), "weights": described}

    def weights(self) -> TorchDistributionMixin:
        """The prior of all weights ``[D]``."""
        return self._weights

    def check(self, net: Any, *, flat: bool) -> None:
        """Raise unless the distribution is one of a network's weights.

        Raises:
            ArgumentError: If the model has a site for each parameter, or the number of weights differs.
        """
        if not flat:
            raise ArgumentError(
                f"prior: {type(self._weights).__name__} is a distribution over all weights jointly; pass flat=True."
            )
        size = self._weights.event_shape[0]
        if size != net.num_params:
            raise ArgumentError(f"prior: is one over {size} weights, and the network has {net.num_params}.")

    def distribution(self, name: str, record: ParamRecord, *, like: Tensor) -> TorchDistributionMixin:
        """There is no prior of one parameter alone; a model asks for :meth:`weights`.

        Raises:
            UsageError: Always.
        """
        raise UsageError(f"prior: has no distribution of {name!r} alone; pass flat=True to the model.")


def modules_of(fn: Any) -> list[nn.Module]:
    """The modules that a distribution is made of, its own and those of what it has.

    Example:
        >>> import torch
        >>> modules_of(torch.distributions.Normal(0.0, 1.0))
        []
    """
    found: dict[int, nn.Module] = {}
    for part in vars(fn).values():
        inner = [part, *(vars(part).values() if hasattr(part, "generator") else ())]
        found.update({id(value): value for value in inner if isinstance(value, nn.Module)})
    return list(found.values())
