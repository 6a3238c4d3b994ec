"""What a guide says of its size: parameters, memory, samples of a step."""

from __future__ import annotations

from typing import Any

from bayeshnet.guides._by_size import default_particles, refuse_step
from bayeshnet.guides._noise_coordinates import NoiseCoordinates
from bayeshnet.guides.size_summary import GuideSummary, summary_of

__all__ = ["Sized"]


class Sized(NoiseCoordinates):
    """The part of a guide that knows how large it is."""

    latent_dim: int

    def choices(self) -> list[str]:
        """Return what was chosen for the user, and why, in a sentence each; for :meth:`summary`."""
        return []

    def expect_batch(self, rows: int) -> None:
        """Prepare for steps of so many rows; :func:`~bayeshnet.fit` says it before :meth:`begin_fit`.

        Here nothing depends on them. An :class:`~bayeshnet.AutoHypernet` of more than 100,000 latents that has chosen
        its number of inducing points keeps no more than cost a tenth of such a step, if it was not in a fit before;
        see its ``repr``.

        Args:
            rows: Number of rows of a step, that of the largest batch.

        Example:
            >>> import pyro, torch, pyro.distributions as dist
            >>> from bayeshnet import AutoHypernet
            >>> guide = AutoHypernet(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), example=())
            >>> guide.expect_batch(64)
        """

    @property
    def default_particles(self) -> int:
        """Number of posterior samples of a step of :func:`~bayeshnet.fit` where it is given none.

        16, and fewer for more than 100,000 latents: 2 from 800,000 on.
        """
        return default_particles(self.latent_dim)

    @property
    def num_parameters(self) -> int:
        """Number of entries of all parameters that are learned."""
        return sum(param.numel() for param in self.parameters() if param.requires_grad)

    def require_memory(self, num_particles: int) -> None:
        """Raise if training with so many posterior samples cannot fit into memory, going by the weights alone.

        Args:
            num_particles: Number of posterior samples of a step.

        Raises:
            ArgumentError: If it does not; the message has the numbers and what can be done.

        Example:
            >>> import pyro, torch, pyro.distributions as dist
            >>> from bayeshnet import AutoHypernet
            >>> AutoHypernet(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), example=()).require_memory(16)
        """
        refuse_step(self.num_parameters, self.latent_dim, num_particles, self.loc)

    def summary(self, data: Any = None, *, num_samples: int | None = None, measure: bool = True) -> GuideSummary:
        """Return what the guide and a training step take: numbers of weights and parameters, memory, seconds.

        With ``measure`` two steps of SVI with Adam are made and undone: parameters, gradients, buffers, random numbers
        and Pyro's parameter store are then what they were.

        Args:
            data: The model's arguments of a step, or an iterable of batches, the first of which is taken; the example
                by default.
            num_samples: Number S of posterior samples of the step; :attr:`default_particles` by default.
            measure: Make a step; otherwise its memory is estimated alone.

        Returns:
            The summary; ``print`` shows it as a table.

        Raises:
            ArgumentError: If the step cannot fit into memory, or ``num_samples`` is not positive.
            ArgumentTypeError: If an argument is of another type.
            UsageError: If the guide is a copy without its model; :meth:`attach` gives it one.

        Example:
            >>> import torch
            >>> from bayeshnet import AutoHypernet, BayesianModel, likelihoods
            >>> x, y = torch.randn(20, 2), torch.randn(20)
            >>> model = BayesianModel(torch.nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.1))
            >>> summary = AutoHypernet(model, example=(x, y), conditional=None).summary(measure=False)
            >>> summary.weights, summary.num_samples, summary.seconds
            (3, 16, None)
        """
        return summary_of(self, data, num_samples, measure=measure)
