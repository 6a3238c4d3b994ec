"""Exact density of a hypernetwork with shared noise."""

from __future__ import annotations

import torch

from bayeshnet.checks import require_count
from bayeshnet.entropy._fused_mlp_draw import fused_mlp_draw, tanh_jacobian
from bayeshnet.entropy.implicit_noise import known_noise
from bayeshnet.entropy.preimages import find_preimages
from bayeshnet.entropy.protocol import BOUND_THE_GRADIENT, Diagnosis, LogDensity
from bayeshnet.entropy.sampler import Draw, NoisySampler
from bayeshnet.entropy.support import has_full_support, measure_holes
from bayeshnet.errors import FoldingWarning
from bayeshnet.normal_density import log_standard_normal
from bayeshnet.typing import LogDensities, NoiseBatch, WeightBatch

__all__ = ["ChangeOfVariables"]

# Of so many draws the surroundings are searched for holes: an error of 4 % at the most.
_HOLE_ROWS = 128


class ChangeOfVariables(LogDensity):
    r"""Change of variables for ``w = h(z[:n]) + sigma * z``.

    Only the first n columns of the Jacobian of :math:`T: z \mapsto w` are not diagonal, so its determinant is one of
    n x n, from the first n outputs of h alone:

    .. math::
        \log q(w) = \log N(z; 0, I_D) - \sum_{i>n} \log \sigma_i
                    - \log |\det(\mathrm{diag}(\sigma_{1:n}) + \partial h_{1:n} / \partial z_{1:n})|

    Exact where T is injective. Otherwise T folds: several z give one w, their densities add up, and the value of one
    of them is too low, so the entropy is over-estimated. :meth:`diagnose` measures by how much.

    Args:
        num_starts: Starting points of the search for the noise behind weights that were not just drawn.
        path_gradients: Let a guide of up to 64 latents leave noise out of its gradients
            (:mod:`bayeshnet.entropy.path_gradient`). What ``backward`` gives is then the derivative of the ELBO's
            expectation, and not that of the number that was drawn: pass False for an optimiser that needs both to
            agree, such as LBFGS, or for one fixed set of draws.

    Raises:
        ArgumentError: If ``num_starts`` is not positive.

    Example:
        >>> from bayeshnet.distributions import ImplicitWeights
        >>> from bayeshnet.hnets import HMLP, HPerturbWrapper
        >>> hnet = HPerturbWrapper(HMLP([[3]], uncond_in_size=2, cond_in_size=0))
        >>> q = ImplicitWeights(hnet, estimator=ChangeOfVariables())
        >>> q.log_prob(q.rsample((4,))).shape
        torch.Size([4])
    """

    noise = "shared"
    everywhere = True

    def __init__(self, *, num_starts: int = 16, path_gradients: bool = True) -> None:
        require_count("num_starts", num_starts, advice=", 16 where the generator may not be injective")
        self.num_starts = num_starts
        self.path_gradients = path_gradients

    def __repr__(self) -> str:
        given = [] if self.num_starts == 16 else [f"num_starts={self.num_starts}"]
        given += [] if self.path_gradients else ["path_gradients=False"]
        return f"ChangeOfVariables({', '.join(given)})"

    def draw(self, sampler: NoisySampler, num: int) -> Draw:
        """See :meth:`LogDensity.draw`."""
        return fused_mlp_draw(sampler, num) or sampler.draw(num)

    def log_prob(self, sampler: NoisySampler, draw: Draw) -> LogDensities:
        """See :meth:`LogDensity.log_prob`.

        Under gradients, a determinant of the rarer sign among the draws gets the opposite gradient. Its draw lies
        beyond a fold, where the value is not exact and the logarithm would drive it further; so it is led back.
        """
        sign, log_det = draw.log_det or self.slogdet(sampler, draw.z)
        if log_det.requires_grad:
            total = float(sign.detach().sum())
            if abs(total) < len(sign):
                rarer = sign * (1.0 if total >= 0 else -1.0) < 0
                log_det = torch.where(rarer, 2.0 * log_det.detach() - log_det, log_det)
        return log_standard_normal(draw.noise) - log_det

    def log_prob_of(self, sampler: NoisySampler, weights: WeightBatch, draw: Draw) -> LogDensities:
        """See :meth:`LogDensity.log_prob_of`: the noise is known, its gradient is that of an implicit function."""
        noise = known_noise(sampler, weights, draw)
        return log_standard_normal(noise) - self._log_abs_det(sampler, noise[:, : sampler.latent_dim])

    def slogdet(self, sampler: NoisySampler, z: NoiseBatch) -> tuple[LogDensities, LogDensities]:
        """Compute the sign and the logarithm of the absolute value of det dT/dz at ``z [S, n]``: ``[S]`` each."""
        log_sigma = sampler.log_sigma()
        n = sampler.latent_dim
        if n == 0:
            total = log_sigma.sum().expand(z.shape[0])
            return torch.ones_like(total), total
        jacobian = tanh_jacobian(sampler, z)
        matrix = (sampler.jacobian(z, rows=n) if jacobian is None else jacobian).double()
        matrix = matrix + torch.diag_embed(log_sigma[:n].double().exp())
        sign, log_abs = torch.linalg.slogdet(matrix)
        return sign.to(z.dtype), log_abs.to(z.dtype) + log_sigma[n:].sum()

    def log_prob_at(self, sampler: NoisySampler, weights: WeightBatch) -> LogDensities:
        """Sum the densities of all preimages found; -inf, with a warning, where none was found.

        The equation ``h(u) + sigma u = w`` is solved in the first n coordinates, see
        :func:`~bayeshnet.entropy.find_preimages`; the remaining noise follows. Differentiable with respect to the
        weights and the sampler. Of a generator that is bounded, or a bijective linear map and a bounded rest
        (``linear_skip``), every value has noise that leads to it. Others leave holes, where the density is 0 and -inf
        is right; a search cannot tell a hole from a solution that it missed, so it warns of both
        (:class:`~bayeshnet.errors.SearchWarning`, with the share of the values).

        Raises:
            ArgumentError: If the weights have another dtype than the sampler, or one is NaN or infinite.
        """
        return find_preimages(sampler, weights, log_abs_det=self._log_abs_det, num_starts=self.num_starts).log_prob

    def _log_abs_det(self, sampler: NoisySampler, z: NoiseBatch) -> LogDensities:
        return self.slogdet(sampler, z)[1]

    @torch.no_grad()
    def diagnose(self, sampler: NoisySampler, *, num_samples: int = 256, thorough: bool = True) -> Diagnosis:
        """Measure how far the map from noise to weights is from injective.

        ``sign_mismatch`` is the share of samples whose determinant has the rarer sign: above 0 proves folding, 0 proves
        nothing. If ``thorough``, ``preimages`` is the mean number of noise vectors found per sample, and
        ``entropy_excess`` the over-estimate of the entropy that they explain, in nats. ``holes`` is then the share of
        values around the draws, as far from them as they are from each other, that the search found no noise for, with
        its standard error ``holes_error``, and ``full_support`` 1 if it is known that there is noise for every value
        (:func:`~bayeshnet.entropy.has_full_support`).
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
                "The sampler folds: it is not injective, so its density is not exact and the ELBO is too high: "
                f"{', '.join(found)}. Near a fold gradients are very large: {BOUND_THE_GRADIENT}, learn the noise "
                "scale per weight, start it larger, train longer, or use independent noise (noise='independent')."
            )
        if thorough:
            known = has_full_support(sampler)
            values["holes"], values["holes_error"] = measure_holes(sampler, draw.weights[:_HOLE_ROWS])
            values["full_support"] = float(known)
            if not known and values["holes"] > 3.0 * values["holes_error"]:
                advice.append(
                    f"The sampler leaves holes: no noise leads to {values['holes']:.1%} of the values around its "
                    "draws, where its density is 0. Where its density is asked for elsewhere than at its own draws (a "
                    "prior, a mixture), use a generator that is bounded (activation_fn=nn.Tanh()), or independent "
                    "noise (noise='independent') with ImportanceSampled()."
                )
        return Diagnosis(values, advice, FoldingWarning)
