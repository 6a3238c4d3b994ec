"""Gradient of log q from draws alone: the spectral Stein gradient estimator."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayeshnet.checks import require_count
from bayeshnet.entropy.change_of_variables import ChangeOfVariables
from bayeshnet.entropy.linearised import Linearised
from bayeshnet.entropy.protocol import Diagnosis, LogDensity
from bayeshnet.entropy.sampler import Draw, NoisySampler
from bayeshnet.errors import ArgumentError, DensityError, EntropyGapWarning, SpreadWarning
from bayeshnet.normal_density import LOG_2PI
from bayeshnet.typing import LogDensities, WeightBatch

__all__ = ["SpectralStein", "spectral_score"]


def spectral_score(samples: Tensor, points: WeightBatch, *, share: float = 0.99) -> WeightBatch:
    r"""Estimate the score :math:`g(x) = \nabla_x \log q(x)` from samples of q.

    g is expanded in the first J eigenfunctions of a Gaussian kernel k under q, which the Gram matrix
    :math:`K_{ml} = k(x_m, x_l)` of M samples gives by Nystroem's method, with eigenvalues :math:`\lambda_j` and unit
    eigenvectors :math:`u_j`:

    .. math::
        \psi_j(x) = \frac{\sqrt M}{\lambda_j} \sum_m u_{jm} k(x, x_m), \qquad
        g(x) = \sum_{j \le J} \beta_j \psi_j(x), \qquad
        \beta_j = -\frac1M \sum_m \nabla \psi_j(x_m)

    Coordinates are divided by their standard deviations first. The kernel's width is the median distance between
    samples, J the smallest number whose eigenvalues make up ``share`` of the sum of all.

    Source: Shi, Sun & Zhu, A Spectral Approach to Gradient Estimation for Implicit Distributions, ICML 2018.

    Args:
        samples: ``[M, D]``, M > 1.
        points: Where to estimate the score ``[S, D]``.
        share: In (0, 1].

    Returns:
        ``[S, D]``, without a gradient, in the dtype of ``points``.

    Example:
        >>> x = torch.linspace(-1.0, 1.0, 3).unsqueeze(1)
        >>> spectral_score(torch.randn(500, 1), x).shape
        torch.Size([3, 1])
    """
    return _SpectralBasis(samples, share).score(points)


class _SpectralBasis:
    """The expansion of the score that M samples give, in float64: small eigenvalues are divided by."""

    @torch.no_grad()
    def __init__(self, samples: Tensor, share: float) -> None:
        x = samples.double()
        self.mean, self.std = x.mean(0), x.std(0).clamp_min(torch.finfo(torch.double).tiny)
        x = (x - self.mean) / self.std
        squared = torch.cdist(x, x).square()
        off_diagonal = squared[torch.triu_indices(len(x), len(x), 1, device=x.device).unbind()]
        self.width = off_diagonal.median().clamp_min(torch.finfo(torch.double).tiny)
        kernel = torch.exp(-0.5 * squared / self.width)
        values, vectors = torch.linalg.eigh(kernel)
        values, vectors = values.flip(0), vectors.flip(1)
        reached = values.cumsum(0) / values.sum()
        self.count = min(int((reached < share).sum()) + 1, len(x))
        # Rounding makes the smallest eigenvalues of a smooth kernel 0 or less.
        self.count = min(self.count, int((values > values[0] * 1e-12).sum()))
        values, vectors = values[: self.count], vectors[:, : self.count]
        # Row m: the sum over samples x_l of the gradient of k(x_l, x_m) with respect to x_l.
        pull = (kernel.sum(1, keepdim=True) * x - kernel @ x) / self.width
        self.coefficients = -(vectors / values.square()) @ (vectors.T @ pull)
        self.samples = x

    @torch.no_grad()
    def score(self, points: Tensor) -> Tensor:
        x = (points.double() - self.mean) / self.std
        kernel = torch.exp(-0.5 * torch.cdist(x, self.samples).square() / self.width)
        return ((kernel @ self.coefficients) / self.std).to(points.dtype)

    @torch.no_grad()
    def gaussian(self, points: Tensor) -> Tensor:
        """Log-density of the Gaussian with the samples' means and variances ``[S]``."""
        x = (points.double() - self.mean) / self.std
        log_q = -0.5 * (x.square().sum(-1) + x.shape[1] * LOG_2PI) - self.std.log().sum()
        return log_q.to(points.dtype)


class SpectralStein(LogDensity):
    r"""Give the ELBO a gradient of log q that is estimated from draws alone.

    **The result of** :meth:`log_prob` **has the gradient of log q, but not its value.** With :func:`spectral_score`
    g(w), estimated from fresh draws, it is

    .. math:: \log N(w; m, \mathrm{diag}\, s^2) + g(w)^\top (w - [w])

    where [.] takes no gradient, and the Gaussian, which takes none either, has the means and variances of the fresh
    draws. A Gaussian's log-density is below log q on average, so **the loss that is reported is no negative ELBO**: it
    is too good, by what :meth:`diagnose` calls ``elbo_excess``. Do not compare it with that of other guides, and do not
    use it in ``RenyiELBO``, importance weights or k-hat.

    It asks nothing of the hypernetwork but draws, and applies to shared and to independent noise. It fails in high
    dimensions, where no kernel on few samples resolves the score: the score comes out too small, and the posterior
    collapses, to 0.27-0.55 of the true spread for the weights of a network. In few dimensions it collapses across a
    posterior that is narrow and curved, since one kernel width, that of the whole, has to resolve it; more ``share``
    helps there. :meth:`diagnose` measures both.

    Source: Shi, Sun & Zhu, A Spectral Approach to Gradient Estimation for Implicit Distributions, ICML 2018.

    Args:
        num_samples: M, fresh draws per call, at least 2. A call takes time ``M^3 + M^2 D``.
        share: Share of the kernel's eigenvalues to keep, in (0, 1]. More has less bias and more variance: 0.999 for
            two or three weights and a narrow or curved posterior, 0.95 for ten and more.

    Raises:
        ArgumentError: If an argument is out of its range.

    Example:
        >>> from bayeshnet.distributions import ImplicitWeights
        >>> from bayeshnet.hnets import HMLP, HPerturbWrapper
        >>> hnet = HMLP([[3]], uncond_in_size=2, cond_in_size=0, verbose=False)
        >>> q = ImplicitWeights(HPerturbWrapper(hnet, sigma_noise=0.5, verbose=False), estimator=SpectralStein())
        >>> surrogate = q.log_prob(q.rsample((4,)))
        >>> surrogate.sum().backward()  # the gradient is that of log q, as far as it was estimated
    """

    noise = None

    def __init__(self, *, num_samples: int = 256, share: float = 0.99) -> None:
        require_count("num_samples", num_samples, least=2, advice="; 100 or more to be of use")
        if not 0 < share <= 1:
            raise ArgumentError(f"share: is {share}; pass a number above 0 and up to 1, such as 0.99.")
        self.num_samples = num_samples
        self.share = share

    def __repr__(self) -> str:
        return f"SpectralStein(num_samples={self.num_samples}, share={self.share})"

    def _basis(self, sampler: NoisySampler) -> _SpectralBasis:
        with torch.no_grad():
            # Not the draws to be scored: a score is then no function of the noise of its own draw, and one draw per
            # step (particles that are not vectorised) suffices.
            return _SpectralBasis(sampler.draw(self.num_samples).weights, self.share)

    @property
    def per_draw(self) -> bool:
        """See :attr:`LogDensity.per_draw`."""
        return False

    @property
    def has_value(self) -> bool:
        """See :attr:`LogDensity.has_value`."""
        return False

    def log_prob(self, sampler: NoisySampler, draw: Draw) -> LogDensities:
        """A surrogate ``[S]`` whose gradient is the estimate and whose value is a Gaussian's; see the class."""
        basis = self._basis(sampler)
        value = basis.gaussian(draw.weights)
        if not (torch.is_grad_enabled() and draw.weights.requires_grad):
            return value
        moved = draw.weights - draw.weights.detach()  # zero, with the gradient of the weights
        return value + (basis.score(draw.weights) * moved).sum(-1)

    def score(self, sampler: NoisySampler, weights: WeightBatch) -> WeightBatch:
        """Estimate the gradient of log q at weights ``[S, D]`` of any origin: ``[S, D]``, itself without gradient."""
        self.check(sampler)
        return self._basis(sampler).score(weights)

    def log_prob_at(self, sampler: NoisySampler, weights: WeightBatch) -> LogDensities:
        """Not available: there is a gradient, but no density.

        Raises:
            DensityError: Always.
        """
        raise DensityError(
            "value: these weights were not drawn by this distribution just before, and SpectralStein estimates the "
            "gradient of log q, not its value; use SpectralStein.score for the gradient, or shared noise "
            "(noise='shared') with ChangeOfVariables() for a density."
        )

    @torch.no_grad()
    def diagnose(self, sampler: NoisySampler, *, num_samples: int = 256, thorough: bool = True) -> Diagnosis:
        r"""Test the estimated score by Stein's identity and by an exact gradient, and the value against the entropy.

        Of the true score, :math:`E_q[-g(w)^\top (w - E w)] = D`: the entropy grows by :math:`D \epsilon` if all draws
        spread by :math:`1 + \epsilon`. ``stein_share`` is what the estimated score makes of it, over D; 1 is right.
        ``spread`` is its square root: the spread of a fitted Gaussian posterior relative to the true one, at which the
        estimated gradient and that of the model balance. ``noise_share``, where the noise scale is learned, compares
        the derivative of the entropy when all noise scales grow by a factor with that of the reference: of change of
        variables for shared noise, of the linearised density for independent noise. Below 1 the draws collapse onto the
        surface that the hypernetwork makes, of which ``spread`` may show little.

        ``elbo_excess`` is by how many nats the reported ELBO exceeds that of the reference, as far as that can be
        trusted; ``elbo_excess_error`` is its standard error. ``eigenfunctions`` is the mean number in use.
        """
        reference = ChangeOfVariables() if sampler.shared else Linearised()
        learned = sampler.hnet.log_sigma_noise
        with torch.set_grad_enabled(learned is not None):
            draw = sampler.draw(num_samples)
            log_q = reference.log_prob(sampler, draw)
            exact = None if learned is None else float(-torch.autograd.grad(log_q.mean(), learned)[0].sum())
        weights, log_q = draw.weights.detach(), log_q.detach()
        centred, noise = weights - weights.mean(0), sampler.sigma * draw.noise
        repeats = 16 if thorough else 4  # one set of fresh draws decides a good part of the error
        bases = [self._basis(sampler) for _ in range(repeats)]
        score = torch.stack([basis.score(weights) for basis in bases]).mean(0)
        excess = (log_q - torch.stack([basis.gaussian(weights) for basis in bases]).mean(0)).double()
        share = float(-(score * centred).double().sum(-1).mean()) / sampler.event_dim
        values = {
            "stein_share": share,
            "spread": math.sqrt(max(share, 0.0)),
            "elbo_excess": float(excess.mean()),
            "elbo_excess_error": float(excess.std() / math.sqrt(num_samples)),
            "eigenfunctions": sum(basis.count for basis in bases) / repeats,
        }
        if exact is not None:
            values["noise_share"] = float(-(score * noise).double().sum(-1).mean()) / exact
        return self._judge(values, sampler.event_dim, repr(reference))

    def _judge(self, values: dict[str, float], num_weights: int, reference: str) -> Diagnosis:
        spread, noise_share, excess = values["spread"], values.get("noise_share", 1.0), values["elbo_excess"]
        advice: list[str] = []
        narrow = (spread if abs(spread - 1.0) > 0.1 else noise_share) < 1.0
        change = "raise share for a few weights" if narrow else "lower share, which is noisy here"
        remedy = f"raise num_samples, {change}, or use {reference}."
        if abs(spread - 1.0) > 0.1:
            advice.append(
                f"The estimated score counts the spread of the draws for {values['stein_share']:.2f} of what it is: "
                f"expect a posterior too {'narrow' if spread < 1.0 else 'wide'}, about {spread:.2f} of the true "
                f"spread. {self.num_samples} samples in {num_weights} dimensions do not resolve the score; {remedy}"
            )
        if not 0.8 <= noise_share <= 1.25:
            advice.append(
                f"The estimated gradient for the noise scale is {noise_share:.2f} of that of {reference}: expect a "
                f"posterior too {'narrow' if noise_share < 1.0 else 'wide'} across what the hypernetwork makes; "
                f"{remedy}"
            )
        category = SpreadWarning if advice else EntropyGapWarning
        if abs(excess) > max(0.1, 3.0 * values["elbo_excess_error"]):
            advice.append(
                "The reported ELBO is none: the value of log q is that of a Gaussian fit, which puts it "
                f"{excess:+.2f} nats off. Only its gradient is meant; to compare guides, evaluate this one with "
                f"{reference}."
            )
        return Diagnosis(values, advice, category)
