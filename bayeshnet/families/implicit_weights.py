"""The distribution of the weights that a hypernetwork makes of noise."""

from __future__ import annotations

import math
import numbers

import torch
from torch import Size, Tensor
from torch.distributions.kl import register_kl

from bayeshnet.checks import kind_of, require_count
from bayeshnet.entropy.change_of_variables import ChangeOfVariables
from bayeshnet.entropy.linearised import Linearised
from bayeshnet.entropy.protocol import Diagnosis, LogDensity
from bayeshnet.entropy.sampler import Draw, NoisySampler
from bayeshnet.errors import ArgumentError, ArgumentTypeError, DensityError
from bayeshnet.families.flat_distribution import FlatDistribution
from bayeshnet.hnets.hnet_interface import HyperNetInterface

__all__ = ["ImplicitWeights"]

# Draws behind mean and variance, unless they would be more numbers than this.
_MOMENT_DRAWS, _MOMENT_NUMBERS, _FEWEST_DRAWS = 4096, 2**25, 64


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

    The density is cheap for the value that :meth:`rsample` returned last, whose noise is known. Elsewhere the noise is
    searched for, if the estimator allows it; else :meth:`log_prob` raises a :class:`~bayeshnet.errors.DensityError`, as
    it does where no sample has a density (batch norm). It refuses values that are NaN or infinite, if arguments are
    validated. An estimator without a gradient at fixed values raises in the backward pass.

    Args:
        hnet: A hypernetwork in a perturbation wrapper, or its :class:`~bayeshnet.entropy.NoisySampler`.
        estimator: How to compute log q; by default :class:`~bayeshnet.entropy.ChangeOfVariables` for shared noise and
            :class:`~bayeshnet.entropy.Linearised` for independent noise.
        cond_id: The condition, for a conditional hypernetwork.
        cond_input: The conditional input ``[E]`` instead.
        loc: Offset ``[D]`` or a number.
        scale: Positive factor ``[D]`` or a number.

    Raises:
        ArgumentTypeError: If ``hnet`` has no perturbation wrapper.
        ArgumentError: If the estimator does not apply to its kind of noise.

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
        if estimator is not None and not isinstance(estimator, LogDensity):
            raise ArgumentTypeError(
                f"estimator: is {estimator!r}; pass one of bayeshnet.entropy, such as ChangeOfVariables(), or None."
            )
        self.estimator = estimator or (ChangeOfVariables() if self.sampler.shared else Linearised())
        if self.estimator.noise != ("shared" if self.sampler.shared else "independent"):
            self.estimator.check(self.sampler)
        self.loc = _affine(loc, self.sampler.event_dim, "loc")
        self.scale = _affine(scale, self.sampler.event_dim, "scale")
        if validate_args is not False and self.scale is not None and not bool((self.scale > 0).all()):
            raise ArgumentError("scale: has entries that are not positive.")
        for name, part in (("loc", self.loc), ("scale", self.scale)) if validate_args is not False else ():
            if part is not None and not bool(torch.isfinite(part).all()):
                raise ArgumentError(f"{name}: has entries that are NaN or infinite.")
        own = {"loc": self.loc, "scale": self.scale, "cond_input": self.sampler.cond_input}
        self.depends_on = (*self.sampler.places, own)
        super().__init__(Size(), Size((self.sampler.event_dim,)), validate_args=validate_args)

    def __repr__(self) -> str:
        noise = "shared" if self.sampler.shared else "independent"
        return (
            f"ImplicitWeights(generator={type(self.sampler.generator).__name__}, noise_dim={self.sampler.latent_dim}, "
            f"noise={noise!r}, estimator={self.estimator!r}, batch_shape={tuple(self.batch_shape)}, "
            f"event_shape={tuple(self.event_shape)})"
        )

    # ------------------------------------------------------------------ sampling and density

    def draw(self, num: int) -> tuple[Tensor, Draw]:
        """See :meth:`FlatDistribution.draw`."""
        made_of = self.estimator.draw(self.sampler, num)
        if self.loc is None and self.scale is None:
            return made_of.weights, made_of
        return self._placed(made_of.weights), made_of

    def _placed(self, weights: Tensor) -> Tensor:
        if self.scale is None:
            return weights if self.loc is None else weights + self.loc
        return weights * self.scale if self.loc is None else torch.addcmul(self.loc, weights, self.scale)

    def log_prob_of_draw(self, made_of: Draw) -> Tensor:
        """See :meth:`FlatDistribution.log_prob_of_draw`."""
        if self.sampler.checked_by is not self.estimator:
            self.estimator.check(self.sampler)
        log_q = self.estimator.log_prob(self.sampler, made_of)
        return log_q if self.scale is None else log_q - self.scale.log().sum()

    def log_prob_of(self, rows: Tensor, made_of: Draw) -> Tensor:
        """See :meth:`FlatDistribution.log_prob_of`."""
        self.estimator.check(self.sampler)
        self._check_dtype(rows)
        log_q = self.estimator.log_prob_of(self.sampler, self._unplaced(rows), made_of)
        return log_q if self.scale is None else log_q - self.scale.log().sum()

    def _log_prob_at(self, rows: Tensor) -> Tensor:
        self.estimator.check(self.sampler)
        self._check_dtype(rows)
        weights = self._unplaced(rows)
        bad = self._refuse_non_finite(weights)
        weights = weights.masked_fill(bad.unsqueeze(-1), 0.0)  # estimators refuse them
        log_q = self.estimator.log_prob_at(self.sampler, weights) if len(weights) else weights.new_zeros(0)
        log_q = log_q.masked_fill(bad, math.nan)
        return log_q if self.scale is None else log_q - self.scale.log().sum()

    def _check_dtype(self, rows: Tensor) -> None:
        dtype = self.sampler.sigma.dtype
        if rows.dtype != dtype:
            raise ArgumentTypeError(
                f"value: has dtype {rows.dtype}, the hypernetwork makes {dtype}; convert it, value.to({dtype})."
            )

    def _unplaced(self, rows: Tensor) -> Tensor:
        rows = rows if self.loc is None else rows - self.loc
        return rows if self.scale is None else rows / self.scale

    # ------------------------------------------------------------------ summaries, by Monte Carlo

    @property
    def mean(self) -> Tensor:
        r"""Mean ``[*batch_shape, D]``, by Monte Carlo over the hypernetwork's input: the perturbation has mean 0.

        Fresh draws at every access, 4096 of them or, for large D, as many as make 2^25 numbers, 64 at least; the
        standard error is that of h(z) over the square root of their number. Differentiable.
        """
        return self._spread_out(self._moments()[0])

    @property
    def variance(self) -> Tensor:
        """Variance of each weight ``[*batch_shape, D]``, by Monte Carlo from as many draws as :attr:`mean`.

        What the perturbation adds to the variance of the hypernetwork's outputs is exact; its covariance with them,
        where the noise is shared, is estimated. The relative standard error is about ``sqrt(2 / number of draws)``.
        """
        return self._spread_out(self._moments()[1])

    def entropy(self, *, num_samples: int = 1000) -> Tensor:
        """Entropy in nats ``[*batch_shape]``: the mean of -log q over fresh draws, by the estimator.

        Its standard error is the standard deviation of log q over ``sqrt(num_samples)``, about ``sqrt(D / 2 /
        num_samples)``; the estimator's bias comes on top, see :meth:`diagnose`. Differentiable.

        Args:
            num_samples: Number of draws.

        Raises:
            DensityError: If the estimator gives no value of log q, or no sample has one (batch norm).
        """
        log_q = self._scored_draws(num_samples)[1]
        return (-log_q.mean()).expand(self.batch_shape)

    def divergence_from(self, other: torch.distributions.Distribution, *, num_samples: int = 1000) -> Tensor:
        r"""Divergence ``KL(self || other)`` in nats by Monte Carlo, the mean of ``log q(w) - log p(w)`` over draws.

        :func:`torch.distributions.kl_divergence` calls it with 1000 draws for Gaussians. Its error is that of the
        difference of both densities, which vanishes with the divergence itself.

        Args:
            other: A distribution over vectors ``[D]``, or with the same number of entries in its event.
            num_samples: Number of draws.

        Returns:
            ``[*batch_shape]`` of both, broadcast.

        Raises:
            ArgumentError: If ``other`` is over something else.
            ArgumentTypeError: If it is not a distribution.
            DensityError: As for :meth:`entropy`.
        """
        if not isinstance(other, torch.distributions.Distribution):
            raise ArgumentTypeError(f"other: is {kind_of(other)}; pass a distribution over vectors.")
        if other.event_shape.numel() != self.event_shape[0] or len(other.event_shape) == 0:
            raise ArgumentError(
                f"other: has event shape {tuple(other.event_shape)}; it has to be {tuple(self.event_shape)}. Of a "
                "Normal with one number per weight use .to_event(1)."
            )
        weights, log_q = self._scored_draws(num_samples)
        shape = (num_samples, *[1] * len(other.batch_shape), *other.event_shape)
        gap = log_q.reshape(shape[: 1 + len(other.batch_shape)]) - other.log_prob(weights.reshape(shape))
        return gap.mean(0).expand(torch.broadcast_shapes(self.batch_shape, other.batch_shape))

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance ``[D]``."""
        sampler = self.sampler
        num = min(_MOMENT_DRAWS, max(_FEWEST_DRAWS, _MOMENT_NUMBERS // sampler.event_dim))
        like, n = sampler.sigma, sampler.latent_dim
        z = torch.randn(num, n, dtype=like.dtype, device=like.device)
        made = sampler.generate(z)
        mean = made.mean(0)
        sigma = sampler.sigma
        variance = made.var(0) + sigma.square() if num > 1 else sigma.square()
        if sampler.shared and n:
            shared = 2.0 * sigma[:n] * (z * (made[:, :n] - mean[:n])).sum(0) / (num - 1)
            variance = torch.cat([variance[:n] + shared, variance[n:]])
        scale = 1.0 if self.scale is None else self.scale
        return mean * scale + (0.0 if self.loc is None else self.loc), variance * scale**2

    def _scored_draws(self, num_samples: int) -> tuple[Tensor, Tensor]:
        """Fresh draws ``[S, D]`` and their log q ``[S]``, which leave the memory of the last draw alone."""
        require_count("num_samples", num_samples)
        self.estimator.check(self.sampler)
        if not self.estimator.has_value:
            raise DensityError(
                f"estimator: {self.estimator!r} estimates the gradient of log q and not its value, so there is neither "
                "an entropy nor a divergence; use ChangeOfVariables() or, with independent noise, Linearised()."
            )
        # Not the estimator's own form of a draw, which may keep account of a guide's training.
        draw = self.sampler.draw(num_samples)
        log_q = self.estimator.log_prob(self.sampler, draw)
        return self._placed(draw.weights), log_q if self.scale is None else log_q - self.scale.log().sum()

    def _spread_out(self, moment: Tensor) -> Tensor:
        return moment.expand(self.batch_shape + self.event_shape)

    def diagnose(self, *, num_samples: int = 256, thorough: bool = True) -> Diagnosis:
        """Check how far the density can be trusted; see the estimator's ``diagnose``."""
        self.estimator.check(self.sampler)
        return self.estimator.diagnose(self.sampler, num_samples=num_samples, thorough=thorough)


def _affine(value: Tensor | float, size: int, argument: str) -> Tensor | None:
    """The tensor ``[D]``, or None where it changes nothing."""
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise ArgumentTypeError(f"{argument}: is {kind_of(value)}; pass a number or a tensor [{size}].")
        neutral = 0.0 if argument == "loc" else 1.0
        if value == neutral:
            return None
        value = torch.full((size,), float(value))
    if value.shape not in (Size(), Size((size,))):
        raise ArgumentError(f"{argument}: has shape {tuple(value.shape)}; pass a number or a tensor of shape [{size}].")
    return value.expand(size)


def _kl_to_gaussian(q: ImplicitWeights, p: torch.distributions.Distribution) -> Tensor:
    if not q.estimator.has_value:  # an ELBO that asks for the divergence then goes by the gradients along its draws
        raise NotImplementedError
    return q.divergence_from(p)


for _gaussian in (
    torch.distributions.Independent,
    torch.distributions.MultivariateNormal,
    torch.distributions.LowRankMultivariateNormal,
):
    register_kl(ImplicitWeights, _gaussian)(_kl_to_gaussian)
