"""Exact density of a hypernetwork with shared noise."""

from __future__ import annotations

import torch
from torch import Tensor

from bayeshnet.entropy.preimages import find_preimages
from bayeshnet.entropy.protocol import Diagnosis, LogDensity
from bayeshnet.entropy.sampler import Draw, NoisySampler
from bayeshnet.errors import FoldingWarning

__all__ = ["ChangeOfVariables"]


class ChangeOfVariables(LogDensity):
    r"""Change of variables for ``w = h(z[:n]) + sigma * z``.

    Only the first n columns of the Jacobian of :math:`T: z \mapsto w` are not diagonal, so its determinant is one of
    n x n, from the first n outputs of h alone:

    .. math::
        \log q(w) = \log N(z; 0, I_D) - \sum_{i>n} \log \sigma_i
                    - \log |\det(\mathrm{diag}(\sigma_{1:n}) + \partial h_{1:n} / \partial z_{1:n})|

    Exact where T is injective. Where it folds, several z give one w, their densities add up, and the value of one of
    them is too low: the entropy is over-estimated. :meth:`diagnose` measures by how much.
    """

    noise = "shared"

    def log_prob(self, sampler: NoisySampler, draw: Draw) -> Tensor:
        """See :meth:`LogDensity.log_prob`."""
        _, log_det = self.slogdet(sampler, draw.z)
        return sampler.log_base_density(draw.noise) - log_det

    def slogdet(self, sampler: NoisySampler, z: Tensor) -> tuple[Tensor, Tensor]:
        """Sign and logarithm of the absolute value of det dT/dz at ``z [S, n]``: ``[S]`` each."""
        log_sigma = sampler.log_sigma()
        n = sampler.latent_dim
        if n == 0:
            total = log_sigma.sum().expand(z.shape[0])
            return torch.ones_like(total), total
        matrix = sampler.jacobian(z, rows=n).double()
        matrix = matrix + torch.diag_embed(log_sigma[:n].double().exp())
        sign, log_abs = torch.linalg.slogdet(matrix)
        return sign.to(z.dtype), log_abs.to(z.dtype) + log_sigma[n:].sum()

    def log_prob_at(self, sampler: NoisySampler, weights: Tensor) -> Tensor:
        """Sum of the densities of all preimages found; -inf where none was found.

        The equation ``h(u) + sigma u = w`` is solved in the first n coordinates by Newton's method from many starts;
        the remaining noise follows.
        """
        return find_preimages(sampler, weights, log_abs_det=self._log_abs_det).log_prob

    def _log_abs_det(self, sampler: NoisySampler, z: Tensor) -> Tensor:
        return self.slogdet(sampler, z)[1]

    @torch.no_grad()
    def diagnose(self, sampler: NoisySampler, *, num_samples: int = 256, thorough: bool = True) -> Diagnosis:
        """Look for folding.

        ``sign_mismatch`` is the share of samples whose determinant has the rarer sign: above 0 proves folding, 0 proves
        nothing. If ``thorough``, ``preimages`` is the mean number of noise vectors found per sample, and
        ``entropy_excess`` the over-estimate of the entropy that they explain, in nats.
        """
        draw = sampler.draw(num_samples)
        sign, _ = self.slogdet(sampler, draw.z)
        positive = float((sign > 0).double().mean())
        values = {"sign_mismatch": min(positive, 1.0 - positive)}
        found = [f"{values['sign_mismatch']:.1%} of the samples have a determinant of the other sign"]
        if thorough:
            preimages = find_preimages(sampler, draw.weights, log_abs_det=self._log_abs_det, known=draw.z)
            values["preimages"] = float(preimages.count.double().mean())
            values["entropy_excess"] = float((preimages.log_prob - self.log_prob(sampler, draw)).double().mean())
            found.append(f"{values['preimages']:.2f} noise vectors lead to a sample on average")
            found.append(f"the entropy is over-estimated by about {values['entropy_excess']:.2f} nats")
        advice: list[str] = []
        if values["sign_mismatch"] > 0 or values.get("entropy_excess", 0.0) > 0.05:
            advice.append(
                f"The sampler folds, so its density is not exact and the ELBO is too high: {', '.join(found)}. Learn "
                "the noise scale per weight, start it larger, train longer, or use independent noise "
                "(noise='independent')."
            )
        return Diagnosis(values, advice, FoldingWarning)
