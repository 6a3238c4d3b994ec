"""Gaussian priors."""

from __future__ import annotations

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bayeshnet.mnets.param_table import ParamRecord
from bayeshnet.models.priors.scaled import ScaledPrior
from bayeshnet.models.weight_normal import WeightNormal

__all__ = ["Normal"]


class Normal(ScaledPrior):
    """Independent Gaussian weights, ``w ~ N(loc, scale^2)``.

    Args:
        scale: The standard deviation: a positive number; ``"fan_in"`` (weights get ``1 / sqrt(fan_in)``, so that
            pre-activations have unit variance whatever the width; biases and everything else 1), ``"xavier"`` or
            ``"kaiming"``; or a mapping from parameter names or patterns to either of these or to a tensor that
            broadcasts to the parameter's shape. In a mapping the exact name counts first, then the patterns
            (``"*.bias"``) in their order.
        loc: The mean: a number, or a mapping as for ``scale``; a network, for the values of its parameters; or
            ``"net"``, for those of the network that the model is built from. By default, and for names that a mapping
            leaves out, 0; but 1 for the scales of normalisation and context-modulation layers, which multiply
            activations.
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
        >>> import torch
        >>> prior = Normal(scale={"*.weight": "fan_in", "*.bias": 0.5})
        >>> prior.distribution("0.weight", ParamRecord((8, 4), "weight", 0), like=torch.zeros(())).base_dist.scale[0, 0]
        tensor(0.5000)
    """

    def made(self, loc: Tensor, scale: Tensor, record: ParamRecord) -> TorchDistributionMixin:
        """See :meth:`ScaledPrior.made`."""
        return WeightNormal(loc, scale)
