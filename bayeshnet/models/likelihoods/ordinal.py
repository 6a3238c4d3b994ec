"""Ordered classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer.util import is_validation_enabled
from torch import Size, Tensor, nn

from bayeshnet.checks import kind_of, require_count
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.formatting import value as printed
from bayeshnet.models.likelihoods._targets import refuse_outside
from bayeshnet.models.likelihoods.base import Likelihood
from bayeshnet.models.likelihoods.parameters import checked_prior, placed

__all__ = ["OrderedLabels", "Ordinal"]


class OrderedLabels(dist.Categorical):
    r"""Labels 0..C-1 with :math:`P(y \le k) = 1 / (1 + e^{f - c_k})`; numbers, with a mean and a variance.

    Log-probabilities are exact where the probabilities underflow: with a and b the ends of the class minus f,
    :math:`\log \sigma(b) + \log \sigma(-a) + \log(1 - e^{a - b})`.

    Args:
        location: The numbers f.
        cutpoints: Increasing numbers c ``[..., C-1]``, which broadcast against ``[*f, C-1]``.

    Example:
        >>> fn = OrderedLabels(torch.tensor(0.0), torch.tensor([-1.0, 1.0]))
        >>> fn.probs, fn.mean
        (tensor([0.2689, 0.4621, 0.2689]), tensor(1.))
    """

    def __init__(self, location: Tensor, cutpoints: Tensor, validate_args: bool | None = None) -> None:
        ends = cutpoints - location.unsqueeze(-1)
        width = (cutpoints[..., 1:] - cutpoints[..., :-1]).expand(*ends.shape[:-1], -1)
        log = nn.functional.logsigmoid
        middle = log(ends[..., 1:]) + log(-ends[..., :-1]) + torch.log(-torch.expm1(-width))
        logits = torch.cat([log(ends[..., :1]), middle, log(-ends[..., -1:])], -1)
        super().__init__(logits=logits, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> OrderedLabels:
        """The same distribution for every place of ``batch_shape``."""
        new = type(self).__new__(type(self)) if _instance is None else _instance
        return super().expand(batch_shape, _instance=new)

    @property
    def _values(self) -> Tensor:
        return torch.arange(self.probs.shape[-1], dtype=self.probs.dtype, device=self.probs.device)

    @property
    def mean(self) -> Tensor:
        """The mean label."""
        return (self.probs * self._values).sum(-1)

    @property
    def variance(self) -> Tensor:
        """The variance of the label."""
        return (self.probs * (self._values - self.mean.unsqueeze(-1)).square()).sum(-1)

    def cdf(self, value: Tensor) -> Tensor:
        """Probability of at most this label."""
        return (self.probs * (self._values <= value.unsqueeze(-1))).sum(-1)


class Ordinal(Likelihood):
    r"""Ordered classes 0..C-1 by one output, :math:`P(y \le k) = 1 / (1 + e^{f - c_k})`; grades, ratings, stages.

    Means and variances of predictions are those of the class as a number.

    Args:
        cutpoints: The numbers c that separate the classes: increasing ``[C-1]`` (known, or where learning starts); a
            prior with event ``[C-1]`` over increasing numbers (latent), such as
            ``dist.TransformedDistribution(dist.Normal(torch.zeros(C - 1), 2.0).to_event(1), OrderedTransform())`` with
            ``pyro.distributions.transforms.OrderedTransform``; or the number of classes C, for cutpoints that are
            learned and start where a standard logistic variable falls into each class with the same probability.
        learn: Optimise cutpoints that are given. Their distances are kept positive.

    Raises:
        ArgumentError: If they do not increase, a prior has another event shape than one dimension, or is to be learned.
        ArgumentTypeError: If they are none of these.

    Example:
        >>> likelihood = Ordinal(torch.tensor([-1.0, 1.0]))
        >>> likelihood.conditional(torch.zeros(7), {}, batch_dims=1).probs[0]
        tensor([0.2689, 0.4621, 0.2689])
        >>> Ordinal(4)
        Ordinal(cutpoints=learned, now [-1.09861, 0, 1.09861])
    """

    integer_targets = True

    def __init__(self, cutpoints: int | Tensor | TorchDistributionMixin, *, learn: bool = False) -> None:
        super().__init__()
        self._prior: TorchDistributionMixin | None = None
        if isinstance(cutpoints, torch.distributions.Distribution):
            self._prior = checked_prior("cutpoints", cutpoints, positive=False)
            if learn:
                raise ArgumentError("learn: cutpoints have a prior and are inferred already; pass a tensor to learn.")
            if len(self._prior.event_shape) != 1:
                raise ArgumentError(
                    f"cutpoints: their prior has event shape {tuple(self._prior.event_shape)}; pass one over vectors "
                    "[C-1] of increasing numbers."
                )
            self.num_classes = int(self._prior.event_shape[0]) + 1
            return
        if isinstance(cutpoints, int) and not isinstance(cutpoints, bool):
            require_count("cutpoints", cutpoints, least=2, advice=" classes, or increasing numbers [C-1]")
            cutpoints, learn = torch.logit(torch.arange(1, cutpoints) / cutpoints), True
        if not isinstance(cutpoints, Tensor):
            raise ArgumentTypeError(
                f"cutpoints: is {kind_of(cutpoints)}; pass a tensor of increasing numbers [C-1], a prior, or the "
                "number of classes."
            )
        start = cutpoints.detach().to(torch.get_default_dtype() if not cutpoints.is_floating_point() else cutpoints)
        if (
            start.dim() != 1
            or not len(start)
            or not bool(torch.isfinite(start).all())
            or bool((start.diff() <= 0).any())
        ):
            raise ArgumentError(f"cutpoints: is {cutpoints.tolist()}; pass increasing finite numbers [C-1].")
        self.num_classes = len(start) + 1
        free = torch.cat([start[:1], start.diff().log()])
        if learn:
            self.free_cutpoints = nn.Parameter(free)
        else:
            self.register_buffer("free_cutpoints", free)

    @property
    def cutpoints(self) -> Tensor:
        """The cutpoints ``[C-1]`` as they are now.

        Raises:
            ArgumentError: If they are latent.
        """
        if self._prior is not None:
            raise ArgumentError("cutpoints: are latent; look at the draws of the site 'likelihood.cutpoints'.")
        free = self.free_cutpoints
        return torch.cat([free[:1], free[:1] + free[1:].exp().cumsum(0)])

    def extra_repr(self) -> str:
        """The cutpoints, for ``repr``."""
        if self._prior is not None:
            return f"cutpoints~{printed(self._prior)}"
        how = "learned, now " if isinstance(self.free_cutpoints, nn.Parameter) else ""
        numbers = ", ".join(f"{c:.6g}" for c in self.cutpoints.tolist())
        return f"cutpoints={how}[{numbers}]"

    def priors(self) -> Mapping[str, TorchDistributionMixin]:
        """See :meth:`Likelihood.priors`."""
        return {} if self._prior is None else {"cutpoints": self._prior}

    def conditional(self, f: Tensor, params: Mapping[str, Tensor], *, batch_dims: int) -> TorchDistributionMixin:
        """See :meth:`Likelihood.conditional`."""
        if self._prior is None:
            cutpoints = self.cutpoints
        else:
            value = placed(params["cutpoints"], 1, f, batch_dims)
            inner = f.dim() - batch_dims
            cutpoints = value.reshape(*value.shape[:-1], *(1,) * inner, value.shape[-1])
        return OrderedLabels(f, cutpoints.to(f.dtype)).to_event(f.dim() - batch_dims)

    def pseudo_targets(self, y: Tensor, num_outputs: int) -> Tensor | None:
        """See :meth:`Likelihood.pseudo_targets`: the middle of each class, those at the ends as wide as 2."""
        count = self.num_classes
        cuts = torch.logit(torch.arange(1, count) / count) if self._prior is not None else self.cutpoints.detach()
        ends = torch.cat([cuts[:1] - 2.0, cuts, cuts[-1:] + 2.0]).double()
        middle = 0.5 * (ends[1:] + ends[:-1])
        return middle[y.long().clamp(0, count - 1)].reshape(len(y), -1)

    def noise_level(self, y: Tensor) -> float:
        """See :meth:`Likelihood.noise_level`: that of the logistic distribution."""
        return 1.8

    def check_target(self, y: Tensor, event_shape: Size) -> None:
        """See :meth:`Likelihood.check_target`."""
        if y.is_floating_point() or y.is_complex():
            raise ArgumentTypeError(
                f"y: has dtype {y.dtype}; an Ordinal likelihood needs integer labels, try y.long()."
            )
        if is_validation_enabled():
            refuse_outside(y, (y < 0) | (y >= self.num_classes), f"the labels 0..{self.num_classes - 1}")
