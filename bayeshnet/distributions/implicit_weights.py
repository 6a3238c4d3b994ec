"""The distribution of the weights that a hypernetwork makes of noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Size, Tensor

from bayeshnet.distributions.flat_distribution import FlatDistribution
from bayeshnet.entropy.change_of_variables import ChangeOfVariables
from bayeshnet.entropy.linearised import Linearised
from bayeshnet.entropy.protocol import Diagnosis, LogDensity
from bayeshnet.entropy.sampler import Draw, NoisySampler
from bayeshnet.errors import ArgumentError
from bayeshnet.hnets.hnet_interface import HyperNetInterface

__all__ = ["ImplicitWeights"]


class ImplicitWeights(FlatDistribution):
    r"""A hypernetwork fed with noise, as a distribution on R^D.

    Draws are :math:`w = \mathrm{loc} + \mathrm{scale} \cdot (h(z) + \sigma e)`; see
    :class:`~bayeshnet.hnets.HPerturbWrapper` for the noise, and for when the density is positive everywhere: always
    with independent noise, with shared noise not for every hypernetwork. As a prior, which is asked for its density at
    values that it did not draw, take independent noise with :class:`~bayeshnet.entropy.ImportanceSampled`, or shared
    noise and a bounded hypernetwork that does not fold. It serves wherever Pyro takes a distribution: in a guide,
    as a prior, in a hand-written model. Gradients flow to the hypernetwork through both :meth:`rsample` and
    :meth:`log_prob`; in a hand-written guide announce its parameters to Pyro with
    :func:`~bayeshnet.models.emit_param_sites`.

    Args:
        hnet: A hypernetwork in a perturbation wrapper, or its :class:`~bayeshnet.entropy.NoisySampler`.
        estimator: How to compute log q; by default :class:`~bayeshnet.entropy.ChangeOfVariables` for shared noise and
            :class:`~bayeshnet.entropy.Linearised` for independent noise.
        cond_id: The condition, for a conditional hypernetwork.
        cond_input: The conditional input ``[E]`` instead.
        loc: Offset ``[D]`` or a number.
        scale: Positive factor ``[D]`` or a number.

    Raises:
        TypeError: If ``hnet`` has no perturbation wrapper.
        ValueError: If the estimator does not apply to its kind of noise.

    Example:
        >>> from bayeshnet.hnets import HMLP, HPerturbWrapper
        >>> hnet = HPerturbWrapper(HMLP([[5, 3], [5]], uncond_in_size=4, cond_in_size=0, verbose=False), verbose=False)
        >>> q = ImplicitWeights(hnet)
        >>> w = q.rsample((7,))
        >>> w.shape, q.log_prob(w).shape
        (torch.Size([7, 20]), torch.Size([7]))
    """

    def __init__(
        self,
        hnet: HyperNetInterface | NoisySampler,
        *,
        estimator: LogDensity | None = None,
        cond_id: int | None = None,
        cond_input: Tensor | None = None,
        loc: Tensor | float = 0.0,
        scale: Tensor | float = 1.0,
        validate_args: bool | None = None,
    ) -> None:
        if isinstance(hnet, NoisySampler):
            if cond_id is not None or cond_input is not None:
                raise ArgumentError("cond_id, cond_input: the sampler given as hnet has its condition already.")
            self.sampler = hnet
        else:
            self.sampler = NoisySampler(hnet, cond_id=cond_id, cond_input=cond_input)
        self.estimator = estimator or (ChangeOfVariables() if self.sampler.shared else Linearised())
        if self.estimator.noise != ("shared" if self.sampler.shared else "independent"):
            self.estimator.check(self.sampler)
        self.loc = _affine(loc, self.sampler.event_dim, "loc")
        self.scale = _affine(scale, self.sampler.event_dim, "scale")
        if validate_args is not False and self.scale is not None and not bool((self.scale > 0).all()):
            raise ArgumentError("scale: has entries that are not positive.")
        super().__init__(self.sampler.event_dim, validate_args=validate_args)

    def __repr__(self) -> str:
        noise = "shared" if self.sampler.shared else "independent"
        return (
            f"ImplicitWeights(generator={type(self.sampler.generator).__name__}, noise_dim={self.sampler.latent_dim}, "
            f"noise={noise!r}, estimator={self.estimator!r}, batch_shape={tuple(self.batch_shape)}, "
            f"event_shape={tuple(self.event_shape)})"
        )

    # ------------------------------------------------------------------ sampling and density

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        """Draw ``[*sample_shape, *batch_shape, D]``, differentiable with respect to the hypernetwork."""
        shape = Size(sample_shape) + self.batch_shape
        draw = self.estimator.draw(self.sampler, math.prod(shape))
        return self._remember(self._placed(draw.weights).reshape(shape + self.event_shape), draw)

    def _placed(self, weights: Tensor) -> Tensor:
        if self.scale is None:
            return weights if self.loc is None else weights + self.loc
        return weights * self.scale if self.loc is None else torch.addcmul(self.loc, weights, self.scale)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density ``[*sample_shape, *batch_shape]``.

        Cheap for the value that :meth:`rsample` returned last, whose noise is known. Elsewhere the noise is searched
        for, if the estimator allows it.

        Raises:
            ValueError: If the last dimension is not D.
            RuntimeError: If the density of a foreign value is not available, or no sample has one (batch norm).
        """
        draw: Draw | None = self._recall(value)
        self.estimator.check(self.sampler)
        if draw is not None:
            log_q = self.estimator.log_prob(self.sampler, draw)
        else:
            foreign = value.reshape(-1, value.shape[-1])
            foreign = foreign if self.loc is None else foreign - self.loc
            foreign = foreign if self.scale is None else foreign / self.scale
            log_q = self.estimator.log_prob_at(self.sampler, foreign)
        return self._shaped(log_q if self.scale is None else log_q - self.scale.log().sum(), value)

    def diagnose(self, *, num_samples: int = 256, thorough: bool = True) -> Diagnosis:
        """Check how far the density can be trusted; see the estimator's ``diagnose``."""
        self.estimator.check(self.sampler)
        return self.estimator.diagnose(self.sampler, num_samples=num_samples, thorough=thorough)


def _affine(value: Tensor | float, size: int, argument: str) -> Tensor | None:
    """The tensor ``[D]``, or None where it changes nothing."""
    if not isinstance(value, Tensor):
        neutral = 0.0 if argument == "loc" else 1.0
        if value == neutral:
            return None
        value = torch.full((size,), float(value))
    if value.shape not in (Size(), Size((size,))):
        raise ArgumentError(f"{argument}: has shape {tuple(value.shape)}; pass a number or a tensor of shape [{size}].")
    return value.expand(size)
