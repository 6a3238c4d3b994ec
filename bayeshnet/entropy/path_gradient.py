r"""The path gradient ("sticking the landing"), used as far as the guide's score agrees with the model's.

For a draw :math:`w = T_\phi(z)` the gradient of :math:`\log q_\phi(w)` has two parts,

.. math:: \nabla_\phi \log q_\phi(T_\phi(z)) = \partial_\phi T^\top s_q(w) + \nabla_\phi \log q_\phi(w)|_w, \quad
    s_q(w) = \nabla_w \log q_\phi(w)

of which the second one, the score, is noise: its expectation is zero. Without it, the path gradient of a guide that is
the posterior vanishes draw by draw. Far from the posterior the path gradient may be the noisier one; the part c of the
score that is left out is therefore

.. math:: c = 1 - E |s_q - s_p|^2 / E |s_q|^2, \quad s_p = \nabla_w \log p(y, w), \quad 0 \le c \le 1

of the steps before. Both scores are at hand where the gradients with respect to the draws arrive.

Sources: Roeder, Wu & Duvenaud, Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational
Inference, NeurIPS 2017 (https://arxiv.org/abs/1703.09194). With importance weights it is another gradient that has no
bias (Tucker, Lawson, Gu & Maddison, Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives, ICLR 2019,
https://arxiv.org/abs/1810.04152), so there nothing is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["PathGradient"]

_MEMORY = 0.9


def _zero() -> Tensor:
    return torch.zeros(())


@dataclass(slots=True)
class PathGradient:
    """How much of the score is left out of the gradient, as learned from step to step for one sampler.

    A family that wants it sets ``sampler.path_gradient`` once, when it is built.

    Attributes:
        share: c, between 0 and 1; 0 in the first steps.
        mismatch: Running mean of ``|s_q - s_p|^2``.
        square: Running mean of ``|s_q|^2``.
        coefficient: What a draw's log q was multiplied with in the last step.

    Example:
        >>> path, score = PathGradient(), torch.randn(8, 3)
        >>> for _ in range(3):  # the mean of log q - log p, of a guide that is the posterior
        ...     for_draws, for_log_q = path.mix(score, -score / 8, torch.full((8,), 1 / 8))
        >>> bool(for_draws.abs().max() < 1e-6), bool(for_log_q.abs().max() < 1e-6)
        (True, True)
    """

    share: Tensor = field(default_factory=_zero)
    mismatch: Tensor = field(default_factory=_zero)
    square: Tensor = field(default_factory=_zero)
    coefficient: Tensor = field(default_factory=_zero)

    @torch.no_grad()
    def mix(self, score: Tensor, for_draws: Tensor, for_log_q: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients to go on with, and update the running means.

        Nothing changes in a step where log q does not enter with one coefficient for all draws, that of the step
        before: bounds with importance weights, say, where what is left out would not be zero on average. One draw alone
        would not tell: there have to be two or more.

        Args:
            score: s_q at the draws ``[S, D]``.
            for_draws: Gradient of the loss with respect to the draws, with log q held fixed.
            for_log_q: The same with respect to log q ``[S]``.
        """
        coefficient = for_log_q[0]
        # The guide may have been moved, or converted, since the last step.
        state = (self.share, self.mismatch, self.square, self.coefficient)
        last_share, last_mismatch, last_square, last = (value.to(coefficient) for value in state)
        mismatch = (score + for_draws / coefficient).square().sum(1).mean()
        square = score.square().sum(1).mean()
        # All on the device: no step waits for a number.
        same = torch.isclose(for_log_q, last, rtol=1e-4, atol=0.0).all()
        usable = same & torch.isfinite(mismatch) & torch.isfinite(square)
        share = torch.where(usable, last_share, 0.0)
        mixed = torch.where(usable, for_draws + share * coefficient * score, for_draws)
        self.coefficient = coefficient
        # Both means start at 0, which their quotient does not show.
        self.mismatch = torch.where(usable, torch.lerp(mismatch, last_mismatch, _MEMORY), last_mismatch)
        self.square = torch.where(usable, torch.lerp(square, last_square, _MEMORY), last_square)
        found = (1.0 - self.mismatch / self.square).nan_to_num(nan=0.0).clamp(0.0, 1.0)
        self.share = torch.where(usable, found, last_share)
        return mixed, (1.0 - share) * for_log_q
