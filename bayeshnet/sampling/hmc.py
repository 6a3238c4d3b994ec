"""Hamiltonian Monte Carlo of many chains at once, whose step size and trajectory length adapt over the chains."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["ChEES", "Transition"]

_TARGET_ACCEPTANCE = 0.8
_MOST_LEAPFROG_STEPS = 200
# An energy that grows so much has left the trajectory: a divergence, as in Stan.
_DIVERGENT = 1000.0
_MOST_HALVINGS = 20


@dataclass(frozen=True, slots=True)
class Transition:
    """What one transition of all chains did.

    Attributes:
        acceptance: Acceptance probability of each chain ``[C]``.
        divergent: Which chains diverged ``[C]``.
        energy: Energy ``[C]`` at the start of the trajectory, after the momentum was drawn.
        num_leapfrog: Number of leapfrog steps, each one gradient of all chains.

    Example:
        >>> done = Transition(torch.tensor([0.5, 0.75]), torch.tensor([False, False]), torch.zeros(2), 10)
        >>> done.acceptance.mean()
        tensor(0.6250)
    """

    acceptance: Tensor
    divergent: Tensor
    energy: Tensor
    num_leapfrog: int


class ChEES:
    r"""ChEES-HMC: one step size and one trajectory length for all chains, learned from all of them.

    A trajectory has a random share :math:`t_n T` of the length T, with :math:`t_n \in (0, 2)` from a Halton sequence.
    During warm-up the logarithm of T follows Adam on the change in the estimator of the expected square,

    .. math:: \tfrac14 E\bigl(\|x' - E x'\|^2 - \|x - E x\|^2\bigr)^2,

    and the step size dual averaging on the harmonic mean of the acceptance probabilities, towards 0.8 (Hoffman, Radul
    & Sountsov, AISTATS 2021, https://proceedings.mlr.press/v130/hoffman21a.html). Coordinates are in units of
    ``scale``.

    Args:
        target: From ``u [C, D]`` to the log density ``[C]`` and its gradient ``[C, D]``.
        start: Where the chains start ``[C, D]``.
        scale: Standard deviation ``[D]`` of each coordinate, about.
        step_size: Step size to start from.

    Attributes:
        u: Where the chains are ``[C, D]``.
        log_density: Their log density ``[C]``.
        step_size: The step size.
        trajectory_length: The mean length T of a trajectory.

    Example:
        >>> chains = ChEES(lambda u: (-0.5 * u.square().sum(1), -u), torch.randn(16, 3), torch.ones(3))
        >>> for _ in range(20):
        ...     done = chains.step(adapt=True)
        >>> done.acceptance.shape, chains.u.shape
        (torch.Size([16]), torch.Size([16, 3]))
    """

    def __init__(
        self,
        target: Callable[[Tensor], tuple[Tensor, Tensor]],
        start: Tensor,
        scale: Tensor,
        *,
        step_size: float = 0.02,
    ) -> None:
        self._target, self._scale = target, scale
        self.u = start.detach().clone()
        self.log_density, self._gradient = target(self.u)
        self.step_size = step_size = self._halved(step_size)
        self.trajectory_length = 25.0 * step_size
        self._shrink_towards = math.log(10.0 * step_size)
        self._averaged_log_step, self._error_sum = math.log(step_size), 0.0
        self._adam = (0.0, 0.0)
        self._count = self._adapted = 0

    def step(self, *, adapt: bool) -> Transition:
        """Make one transition of all chains.

        Args:
            adapt: Whether step size and length adapt, which is for warm-up only: draws of adapting chains are not
                exact.
        """
        self._count += 1
        share = 2.0 * _halton(self._count)
        number = math.ceil(share * self.trajectory_length / self.step_size)
        number = max(1, min(number, _MOST_LEAPFROG_STEPS))
        momentum = torch.randn_like(self.u)
        energy = _energy(momentum, self.log_density)
        u, moved, log_density, gradient = self._leapfrog(momentum, number, self.step_size)
        end = _energy(moved, log_density)
        acceptance = _acceptance(energy, end)
        accepted = torch.rand_like(acceptance) < acceptance
        if adapt:
            self._adapt(u, moved, acceptance, share)
        rows = accepted.unsqueeze(1)
        self.u = torch.where(rows, u, self.u)
        self._gradient = torch.where(rows, gradient, self._gradient)
        self.log_density = torch.where(accepted, log_density, self.log_density)
        divergent = ~(end - energy < _DIVERGENT)
        return Transition(acceptance, divergent, energy, number)

    def end_warm_up(self) -> None:
        """Use the averaged step size from now on."""
        if self._adapted:
            self.step_size = math.exp(self._averaged_log_step)

    def _halved(self, step_size: float) -> float:
        """A step size, halved until half of the trajectories of one step are accepted."""
        for _ in range(_MOST_HALVINGS):
            momentum = torch.randn_like(self.u)
            energy = _energy(momentum, self.log_density)
            _, moved, log_density, _ = self._leapfrog(momentum, 1, step_size)
            if float(_acceptance(energy, _energy(moved, log_density)).mean()) >= 0.5:
                break
            step_size *= 0.5
        return step_size

    def _leapfrog(self, momentum: Tensor, number: int, step_size: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        u, log_density, gradient = self.u, self.log_density, self._gradient
        half = 0.5 * step_size * self._scale
        momentum = momentum + half * gradient
        for i in range(number):
            u = u + 2.0 * half * momentum
            log_density, gradient = self._target(u)
            momentum = momentum + (half if i == number - 1 else 2.0 * half) * gradient
        return u, momentum, log_density, gradient

    def _adapt(self, u: Tensor, momentum: Tensor, acceptance: Tensor, share: float) -> None:
        self._adapted += 1
        n = self._adapted
        # Dual averaging (Hoffman & Gelman, JMLR 2014, section 3.2).
        harmonic = float(len(acceptance) / acceptance.clamp(min=1e-3).reciprocal().sum())
        self._error_sum += (_TARGET_ACCEPTANCE - harmonic - self._error_sum) / (n + 10)
        log_step = self._shrink_towards - 20.0 * math.sqrt(n) * self._error_sum
        weight = n**-0.75
        self._averaged_log_step = weight * log_step + (1.0 - weight) * self._averaged_log_step
        # The criterion's gradient, weighted by acceptance: ends that are rejected for certain may be anything, up to
        # overflow, and count nothing.
        rows = (acceptance > 0.0).unsqueeze(1)
        before, after = self.u.double() / self._scale, torch.where(rows, u, self.u).double() / self._scale
        velocity = torch.where(rows, momentum, 0.0).double()
        weights = acceptance / acceptance.sum().clamp(min=1e-9)
        centred = after - (weights.unsqueeze(1) * after).sum(0)
        change = centred.square().sum(1) - (before - before.mean(0)).square().sum(1)
        slope = float((weights * change * (centred * velocity).sum(1)).sum()) * share * self.trajectory_length
        slope = slope if math.isfinite(slope) else 0.0  # of chains that leave for infinity
        mean, square = self._adam
        mean, square = 0.9 * mean + 0.1 * slope, 0.95 * square + 0.05 * slope**2
        self._adam = mean, square
        direction = (mean / (1.0 - 0.9**n)) / (math.sqrt(square / (1.0 - 0.95**n)) + 1e-12)
        log_length = math.log(self.trajectory_length) + 0.05 * direction
        self.step_size = math.exp(log_step)
        longest = 0.5 * _MOST_LEAPFROG_STEPS * self.step_size
        self.trajectory_length = min(max(math.exp(log_length), self.step_size), longest)


def _energy(momentum: Tensor, log_density: Tensor) -> Tensor:
    return 0.5 * momentum.double().square().sum(1) - log_density


def _acceptance(start: Tensor, end: Tensor) -> Tensor:
    """Acceptance probability of trajectories between these energies; 0 where one is not defined."""
    return torch.nan_to_num((start - end).clamp(max=0.0).exp(), 0.0)


def _halton(index: int) -> float:
    """The base-2 Halton (van der Corput) sequence."""
    result, fraction = 0.0, 0.5
    while index:
        result += fraction * (index % 2)
        index, fraction = index // 2, fraction / 2
    return result
