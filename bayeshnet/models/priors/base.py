"""What a prior of weights is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayeshnet.configuration import Configured
from bayeshnet.mnets.param_table import ParamRecord

__all__ = ["Prior"]


class Prior(Configured, ABC):
    """Gives the prior of each parameter tensor of a network.

    Subclasses implement :meth:`distribution`; a plain function with its signature serves as well.

    Example:
        >>> import torch
        >>> from bayeshnet.models.weight_normal import WeightNormal
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

    def latents(self, params: Mapping[str, ParamRecord], *, like: Tensor) -> Mapping[str, TorchDistributionMixin]:
        """Priors of what this prior itself leaves to be inferred, such as scales; empty for most.

        A model draws each as the site ``prior.NAME``, before the weights.

        Args:
            params: What is known of each parameter, by name.
            like: A tensor with the dtype and device to use.

        Returns:
            A distribution with empty ``batch_shape`` for each, by NAME.
        """
        return {}

    def given(
        self, name: str, record: ParamRecord, latents: Mapping[str, Tensor], *, like: Tensor
    ) -> TorchDistributionMixin:
        """The prior of one parameter for given values of :meth:`latents`.

        Args:
            name: The parameter's dotted name.
            record: What is known of it.
            latents: A value ``[*samples, *event]`` of each latent, by NAME.
            like: A tensor with the dtype and device to use.

        Returns:
            A distribution whose ``batch_shape`` is ``samples``, or empty if it depends on no latent.
        """
        return self.distribution(name, record, like=like)

    def for_network(self, net: nn.Module) -> Prior:
        """The prior as it is for a network that is given: with its values, where they are asked for."""
        return self
