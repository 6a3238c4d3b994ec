"""Semi-implicit bound on the density of a hypernetwork with independent noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayeshnet.checks import require_count
from bayeshnet.entropy.importance import importance_log_density
from bayeshnet.entropy.no_gradient import refuse_gradient
from bayeshnet.entropy.protocol import Diagnosis, LogDensity
from bayeshnet.entropy.sampler import Draw, NoisySampler, require_values
from bayeshnet.errors import DensityError, SelfWeightWarning
from bayeshnet.normal_density import LOG_2PI
from bayeshnet.typing import LogDensities, WeightBatch

__all__ = ["SemiImplicit"]

_SATURATED = 0.9
_FEWEST = 0.01


class SemiImplicit(LogDensity):
    r"""Mix the Gaussians of a draw's own noise input and of K fresh ones, for ``w = h(z) + sigma * e``.

    .. math::
        \log q(w) \approx \log \frac{1}{K + 1} \sum_{k=0}^{K} N(w; h(z_k), \mathrm{diag}\, \sigma^2)

    with :math:`z_0` the noise that made w and :math:`z_1 \dots z_K` drawn anew from N(0, I), the same for all draws of
    one call. On average it is not below log q, so the ELBO made of it is a lower bound for every K; it tightens as K
    grows, with an excess of about :math:`\chi^2 / 2K`.

    It fails by saturation: among many weights no fresh input comes near a draw, its own one takes all the weight, and
    the value is log N(w; h(z_0), diag sigma^2) - log(K + 1) whatever the spread of h is. Use it for about ten weights
    or fewer; :meth:`diagnose` measures the self-weight.

    Source: Yin & Zhou, Semi-Implicit Variational Inference, ICML 2018.

    Args:
        num_fresh: K, at least 1. Time and memory of a call grow as ``S * K * D``.

    Raises:
        ArgumentError: If ``num_fresh`` is not positive.

    Example:
        >>> from bayeshnet.distributions import ImplicitWeights
        >>> from bayeshnet.hnets import HMLP, HPerturbWrapper
        >>> hnet = HMLP([[3]], uncond_in_size=2, cond_in_size=0, verbose=False)
        >>> q = ImplicitWeights(
        ...     HPerturbWrapper(hnet, sigma_noise=0.5, noise="independent", verbose=False),
        ...     estimator=SemiImplicit(num_fresh=50),
        ... )
        >>> q.log_prob(q.rsample((4,))).shape
        torch.Size([4])
    """

    noise = "independent"

    def __init__(self, *, num_fresh: int = 100) -> None:
        require_count("num_fresh", num_fresh)
        self.num_fresh = num_fresh

    def __repr__(self) -> str:
        return f"SemiImplicit(num_fresh={self.num_fresh})"

    def log_prob(self, sampler: NoisySampler, draw: Draw) -> LogDensities:
        """See :meth:`LogDensity.log_prob`."""
        return torch.logsumexp(self._log_components(sampler, draw), 1) - math.log(self.num_fresh + 1)

    def _log_components(self, sampler: NoisySampler, draw: Draw) -> Tensor:
        """Log-density of each draw under each component ``[S, 1 + K]``, that of its own noise first."""
        z = torch.randn(self.num_fresh, sampler.latent_dim, dtype=draw.z.dtype, device=draw.z.device)
        inverse = (-sampler.log_sigma()).exp()
        offset = draw.weights.unsqueeze(1) - sampler.generate(z)
        fresh = (offset * inverse).square().sum(-1)
        own = draw.noise.square().sum(-1, keepdim=True)
        constant = 0.5 * sampler.event_dim * LOG_2PI + sampler.log_sigma().sum()
        return -0.5 * torch.cat([own, fresh], 1) - constant

    def log_prob_at(self, sampler: NoisySampler, weights: WeightBatch) -> LogDensities:
        """By importance sampling over z, since the noise that made the weights is not known.

        The estimate is not the bound of :meth:`log_prob`: it is closer to log q, and below it on average. It carries no
        gradient: ``backward`` raises.

        Raises:
            ArgumentError: If the weights have another dtype than the sampler, or one is NaN or infinite.
            DensityError: If for some of the weights importance sampling kept fewer than 1 % of its samples; in the
                backward pass, if a gradient is asked for.
        """
        require_values(sampler, weights)
        starts = torch.randn(weights.shape[0], sampler.latent_dim, dtype=weights.dtype, device=weights.device)
        # Of the noise only z is used, as one of the points to linearise at; any start will do.
        found = importance_log_density(sampler, Draw(weights.detach(), starts, torch.zeros_like(weights)))
        poor = int((found.effective_share < _FEWEST).sum())
        if poor:
            raise DensityError(
                f"value: for {poor} of {weights.shape[0]} weights importance sampling kept fewer than {_FEWEST:.0%} of "
                "its samples, so their density is not known: they lie far from what the hypernetwork makes, or it "
                "bends within the reach of the noise. Use a larger noise scale, or shared noise (noise='shared') with "
                "ChangeOfVariables()."
            )
        log_q = found.log_prob.to(weights.dtype)
        return refuse_gradient(log_q, [*sampler.parameters(), weights], self._no_score())

    @torch.no_grad()
    def diagnose(self, sampler: NoisySampler, *, num_samples: int = 256, thorough: bool = True) -> Diagnosis:
        """Measure the self-weight: that of a draw's own noise in the mixture.

        ``self_weight`` is its mean over draws, from ``1 / (K + 1)`` (the noise input does not matter) to 1 (nothing
        else does); above 0.9 the bound is of no use. If ``thorough``, ``entropy_gap`` is H_bound - H_importance in
        nats, 0 or less but for its standard error ``entropy_gap_error``: by so much the ELBO is too low.
        """
        draw = sampler.draw(num_samples)
        components = self._log_components(sampler, draw)
        values = {"self_weight": float(torch.softmax(components.double(), 1)[:, 0].mean())}
        if thorough:
            found = importance_log_density(sampler, draw)
            gap = found.log_prob - (torch.logsumexp(components.double(), 1) - math.log(self.num_fresh + 1))
            values["entropy_gap"] = float(gap.mean())
            values["entropy_gap_error"] = float(gap.std() / math.sqrt(num_samples))
            values["effective_share"] = float(found.effective_share.mean())
        advice: list[str] = []
        if values["self_weight"] > _SATURATED:
            advice.append(
                f"A draw's own noise carries {values['self_weight']:.1%} of the weight in the semi-implicit bound, so "
                f"the bound is the density of the noise alone less log({self.num_fresh + 1}), and the hypernetwork "
                f"gets no credit for its spread. With {sampler.event_dim} weights use Linearised(), or shared noise "
                "(noise='shared'); with about ten or fewer raise num_fresh or start with a larger noise scale."
            )
        return Diagnosis(values, advice, SelfWeightWarning)
