"""The distribution of the weights that a hypernetwork makes of noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Size, Tensor

from bayeshnet.entropy.change_of_variables import ChangeOfVariables
from bayeshnet.entropy.linearised import Linearised
from bayeshnet.entropy.protocol import Diagnosis, LogDensity
from bayeshnet.entropy.sampler import Draw, NoisySampler
from bayeshnet.errors import ArgumentError
from bayeshnet.hnets.hnet_interface import HyperNetInterface

__all__ = ["ImplicitWeights"]


class ImplicitWeights(TorchDistribution):
    r"""A hypernetwork fed with noise, as a distribution over R^D.

    Draws are :math:`w = \mathrm{loc} + \mathrm{scale} \cdot (h(z) + \sigma e)`; see
    :class:`~bayeshnet.hnets.HPerturbWrapper` for the noise. It serves wherever Pyro takes a distribution: in a guide,
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

    # torch declares these as properties and uses them as plain attributes.
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 # pyright: ignore[reportIncompatibleMethodOverride]
    support: Any = constraints.real_vector  # pyright: ignore[reportIncompatibleMethodOverride]
    has_rsample = True

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
        self._last: tuple[Tensor, Draw] | None = None
        super().__init__(Size(), Size((self.sampler.event_dim,)), validate_args=validate_args)

    def __repr__(self) -> str:
        noise = "shared" if self.sampler.shared else "independent"
        return (
            f"ImplicitWeights(generator={type(self.sampler.generator).__name__}, noise_dim={self.sampler.latent_dim}, "
            f"noise={noise!r}, estimator={self.estimator!r}, batch_shape={tuple(self.batch_shape)}, "
            f"event_shape={tuple(self.event_shape)})"
        )

    def expand(self, batch_shape: Any, _instance: Any = None) -> ImplicitWeights:
        """The same distribution, drawn independently for every place of ``batch_shape``."""
        new: ImplicitWeights = type(self).__new__(type(self)) if _instance is None else _instance
        new.sampler, new.estimator = self.sampler, self.estimator
        new.loc, new.scale = self.loc, self.scale
        new._last = None
        TorchDistribution.__init__(new, Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def __getstate__(self) -> dict[str, Any]:
        # The last draw hangs on its autograd graph, which can be neither copied nor pickled.
        return {**self.__dict__, "_last": None}

    # ------------------------------------------------------------------ sampling and density

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        """Draw ``[*sample_shape, *batch_shape, D]``, differentiable with respect to the hypernetwork."""
        shape = Size(sample_shape) + self.batch_shape
        draw = self.sampler.draw(math.prod(shape))
        weights = self._placed(draw.weights).reshape(shape + self.event_shape)
        self._last = (weights, draw)
        return weights

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
        if value.dim() == 0 or value.shape[-1] != self.sampler.event_dim:
            raise ArgumentError(
                f"value: has shape {tuple(value.shape)}; its last dimension has to be {self.sampler.event_dim}, the "
                "number of weights."
            )
        self.estimator.check(self.sampler)
        draw = self._draw_of(value)
        if draw is not None:
            log_q = self.estimator.log_prob(self.sampler, draw)
        else:
            foreign = value.reshape(-1, value.shape[-1])
            foreign = foreign if self.loc is None else foreign - self.loc
            foreign = foreign if self.scale is None else foreign / self.scale
            log_q = self.estimator.log_prob_at(self.sampler, foreign)
        log_q = log_q.reshape(value.shape[:-1])
        if self.scale is not None:
            log_q = log_q - self.scale.log().sum()
        return log_q.expand(torch.broadcast_shapes(log_q.shape, self.batch_shape))

    def _draw_of(self, value: Tensor) -> Draw | None:
        if self._last is None:
            return None
        last, draw = self._last
        if value is last or (value.shape == last.shape and bool(torch.equal(value, last))):
            return draw
        return None

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
