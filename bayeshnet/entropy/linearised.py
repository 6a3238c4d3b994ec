"""Linearised density of a hypernetwork with independent noise."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from bayeshnet.entropy.importance import importance_log_density
from bayeshnet.entropy.protocol import Diagnosis, LogDensity
from bayeshnet.entropy.sampler import Draw, NoisySampler
from bayeshnet.errors import ArgumentError, DensityError, EntropyGapWarning
from bayeshnet.normal_density import LOG_2PI, log_standard_normal
from bayeshnet.typing import LogDensities, WeightBatch

__all__ = ["Linearised"]


class Linearised(LogDensity):
    r"""Linearise the generator around the noise of each sample, for ``w = h(z) + sigma * e``.

    With :math:`J = dh/dz` at the sample's z, :math:`\Sigma = \mathrm{diag}(\sigma^2)` and
    :math:`A = I_n + J^T \Sigma^{-1} J`, the sampler is replaced by a Gaussian there:

    * ``form="density"``: :math:`\log N(w; h(z) - J z, J J^T + \Sigma)`, a density per sample, which importance
      weighting and Renyi bounds need;
    * ``form="entropy"``: minus its entropy,
      :math:`-\sum_i \log \sigma_i - \frac12 \log\det A - \frac D2 \log 2 \pi e`, right on average only, so for the ELBO
      alone, where its gradients are less noisy.

    Where h is linear in its last layer, :math:`J = W C`, the n x n matrix A comes from the Gram matrix of W, made once
    for all samples. The entropy is over-estimated where the generator is not injective; :meth:`diagnose` compares it
    with importance sampling.

    Source: Uppal et al., Implicit Variational Inference for High-Dimensional Posteriors, NeurIPS 2023.

    Raises:
        ArgumentError: If ``form`` is unknown.

    Example:
        >>> from bayeshnet.distributions import ImplicitWeights
        >>> from bayeshnet.hnets import HMLP, HPerturbWrapper
        >>> hnet = HPerturbWrapper(HMLP([[3]], uncond_in_size=2, cond_in_size=0), noise="independent")
        >>> q = ImplicitWeights(hnet, estimator=Linearised())
        >>> q.log_prob(q.rsample((4,))).shape
        torch.Size([4])
    """

    noise = "independent"

    def __init__(self, *, form: Literal["density", "entropy"] = "density") -> None:
        if form not in ("density", "entropy"):
            raise ArgumentError(f"form: is {form!r}; pass 'density' or 'entropy'.")
        self.form = form

    def __repr__(self) -> str:
        return f"Linearised(form={self.form!r})"

    @property
    def per_draw(self) -> bool:
        """See :attr:`LogDensity.per_draw`."""
        return self.form == "density"

    def log_prob(self, sampler: NoisySampler, draw: Draw) -> LogDensities:
        """See :meth:`LogDensity.log_prob`."""
        if sampler.latent_dim == 0:  # a Gaussian
            return log_standard_normal(draw.noise) - sampler.log_sigma().sum()
        curvature, pull = self._curvature(sampler, draw)
        n = sampler.latent_dim
        matrix = curvature + torch.eye(n, dtype=curvature.dtype, device=curvature.device)
        chol = torch.linalg.cholesky(matrix)
        log_det = 2.0 * chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_sigma = sampler.log_sigma().sum()
        if self.form == "entropy":
            quadratic = torch.full_like(log_det, float(sampler.event_dim))
        else:
            # |(z, e)|^2 less its part in the null space of (J, Sigma^1/2), which does not move w.
            z = draw.z.double()
            lost = torch.linalg.solve_triangular(chol, (z - pull).unsqueeze(-1), upper=False).squeeze(-1)
            quadratic = draw.noise.double().square().sum(-1) + z.square().sum(-1) - lost.square().sum(-1)
        half = 0.5 * (log_det + quadratic + sampler.event_dim * LOG_2PI)
        return (-half).to(draw.z.dtype) - log_sigma

    def _curvature(self, sampler: NoisySampler, draw: Draw) -> tuple[Tensor, Tensor]:
        """``J^T Sigma^-1 J`` as ``[S, n, n]`` and ``J^T Sigma^-1/2 e`` as ``[S, n]``, in float64."""
        head = sampler.linear_head
        inverse = (-sampler.log_sigma()).double().exp()
        if head is None:
            scaled = sampler.jacobian(draw.z).double() * inverse
            return _symmetric(scaled @ scaled.transpose(1, 2)), (scaled @ draw.noise.double().unsqueeze(-1)).squeeze(-1)
        weight, _ = head.head()
        scaled_weight = weight.double() * inverse.unsqueeze(1)
        jacobian = sampler.feature_jacobian(draw.z).double()
        gram = scaled_weight.T @ scaled_weight
        pull = (jacobian @ (draw.noise.double() @ scaled_weight).unsqueeze(-1)).squeeze(-1)
        return _symmetric(jacobian @ gram @ jacobian.transpose(1, 2)), pull

    def log_prob_at(self, sampler: NoisySampler, weights: WeightBatch) -> LogDensities:
        """Not available: the density at weights that were not sampled here is an integral over z.

        Raises:
            DensityError: Always.
        """
        raise DensityError(
            "value: these weights were not drawn by this distribution just before, or are a part of what was, and with "
            "independent noise the density elsewhere is an integral over the noise; score samples right after drawing "
            "them, all at once, or use estimator=ImportanceSampled(), or shared noise (noise='shared')."
        )

    @torch.no_grad()
    def diagnose(self, sampler: NoisySampler, *, num_samples: int = 256, thorough: bool = True) -> Diagnosis:
        """Compare with importance sampling over z; see :func:`~bayeshnet.entropy.importance_log_density`.

        ``entropy_gap`` is H_linearised - H_importance in nats, ``entropy_gap_error`` its standard error, and
        ``effective_share`` the mean effective sample size over the number of importance samples; distrust the gap where
        that is below 0.1.
        """
        draw = sampler.draw(num_samples)
        options = {"num_inner": 64} if thorough else {"num_inner": 16, "num_starts": 2, "num_steps": 5}
        found = importance_log_density(sampler, draw, **options)
        gap = found.log_prob - Linearised().log_prob(sampler, draw).double()
        values = {
            "entropy_gap": float(gap.mean()),
            "entropy_gap_error": float(gap.std() / math.sqrt(num_samples)),
            "effective_share": float(found.effective_share.mean()),
        }
        advice: list[str] = []
        if values["effective_share"] < 0.1:
            advice.append(
                f"Importance sampling kept {values['effective_share']:.1%} of its samples, too few to check the "
                "linearised entropy: the generator bends within the reach of the noise. Use shared noise "
                "(noise='shared'), or fewer noise dimensions."
            )
        elif abs(values["entropy_gap"]) > max(0.1, 3.0 * values["entropy_gap_error"]):
            advice.append(
                f"The linearised entropy is {values['entropy_gap']:+.2f} nats from importance sampling, and the ELBO "
                "is off by as much. Use shared noise (noise='shared'), whose density is exact, or a smoother generator."
            )
        return Diagnosis(values, advice, EntropyGapWarning)


def _symmetric(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.transpose(-1, -2))
