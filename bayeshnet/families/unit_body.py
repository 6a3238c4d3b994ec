"""Bodies whose noise correlates the weights of each unit."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from bayeshnet.entropy.protocol import Diagnosis, LogDensity
from bayeshnet.families._default_hnet import output_params
from bayeshnet.families.base import Body, HypernetBody, SlowParams
from bayeshnet.families.block_gaussian import UnitGaussians, UnitLayout
from bayeshnet.hnets.hnet_perturbation_wrapper import HPerturbWrapper
from bayeshnet.mnets.param_table import ParamRecord

__all__ = ["UnitBody", "UnitHypernetBody", "UnitNoise", "unit_layout"]

# Factor of the learning rate of the hypernetwork, and the decay of its output layer: at fit's rate of 0.01 what no
# gradient holds up falls to 1/e in 130 steps.
_RATE = 0.05
_DECAY = 15.0


class UnitNoise(nn.Module):
    """Means, scales and the correlations within units, for each of C components; without correlations at the start.

    Args:
        starts: Start of the means ``[n]`` of each component.
        start_scale: Start of the standard deviations.
        layout: Which latents belong to the same unit.
    """

    def __init__(self, starts: Sequence[Tensor], start_scale: float, layout: UnitLayout) -> None:
        super().__init__()
        first = starts[0]
        self.blocks = layout.blocks
        self.register_buffer("order", layout.order.to(first.device))
        self.register_buffer("place", torch.argsort(self.order))
        self.order: Tensor
        self.place: Tensor
        self.loc = nn.Parameter(torch.stack([start.detach()[self.place] for start in starts]))
        self.log_scale = nn.Parameter(torch.full_like(self.loc, math.log(start_scale)))
        self.factors = nn.ParameterList(
            first.new_zeros(len(starts), units, size, size) for units, size in layout.blocks
        )

    def params(self, loc: Tensor | None, scale: Tensor | None) -> tuple[Tensor, Tensor, list[Tensor], UnitLayout]:
        """Means, log-scales, factors and layout of ``loc + scale * u``."""
        means, log_scale = self.loc, self.log_scale
        if scale is not None:
            by_unit = scale.expand(means.shape[1])[self.place]
            means, log_scale = means * by_unit, log_scale + by_unit.log()
        if loc is not None:
            means = means + loc.expand(means.shape[1])[self.place]
        return means, log_scale, list(self.factors), UnitLayout(self.order, self.blocks)


class UnitBody(Body):
    """A mixture of Gaussians with one block of covariance per unit.

    Args:
        noise: What is learned of it.
    """

    def __init__(self, noise: UnitNoise) -> None:
        super().__init__()
        self.noise = noise

    def distribution(self, loc: Tensor | None = None, scale: Tensor | None = None) -> UnitGaussians:
        """See :meth:`Body.distribution`."""
        return UnitGaussians(*self.noise.params(loc, scale), validate_args=False)

    def describe(self) -> str:
        """See :meth:`Body.describe`."""
        return f"body='units', num_components={len(self.noise.loc)}"


class UnitHypernetBody(HypernetBody):
    r"""A hypernetwork whose noise on the weights is correlated within each unit.

    .. math:: u = \mu + \sigma \odot T (h(z) + e)

    Args:
        hnet: The hypernetwork in a perturbation wrapper, both starting as standard normal noise.
        noise: Of each component.
        estimator: Of log q; by default the one that fits the noise.
    """

    # Of what the body does the hypernetwork is a small part.
    path_gradients = False

    def __init__(self, hnet: HPerturbWrapper, noise: UnitNoise, estimator: LogDensity | None = None) -> None:
        super().__init__(hnet, estimator)
        self.noise = noise

    def distribution(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, loc: Tensor | None = None, scale: Tensor | None = None
    ) -> UnitGaussians:
        """See :meth:`Body.distribution`."""
        return UnitGaussians(*self.noise.params(loc, scale), noise=super().distribution(), validate_args=False)

    def describe(self) -> str:
        """See :meth:`Body.describe`."""
        num = len(self.noise.loc)
        return f"{super().describe()}, correlated by units" + (f", num_components={num}" if num > 1 else "")

    def slow_params(self) -> list[SlowParams]:
        """All of the hypernetwork: it bends noise that has the right place and scale without it.

        Its output layer decays. Of its thousands of weights each follows the noise of its gradient and adds a little to
        the spread of what is drawn; what the data do not ask for again and again is taken back.
        """
        outputs = output_params(self.hnet)
        decaying = {id(param) for param in outputs}
        hidden = [param for param in self.hnet.internal_params or () if id(param) not in decaying]
        return [SlowParams(hidden, _RATE), SlowParams(outputs, _RATE, _DECAY)]

    def diagnose(self, *, num_samples: int = 256, thorough: bool = True) -> Diagnosis:
        """See :meth:`Body.diagnose`; the map behind the hypernetwork is linear and neither folds nor tears."""
        return HypernetBody.distribution(self).diagnose(num_samples=num_samples, thorough=thorough)


def unit_layout(records: Sequence[ParamRecord], conditional: Collection[int], rest: int) -> UnitLayout:
    """Which of the latents that a body draws are weights of the same unit of a network.

    Args:
        records: The network's parameter table.
        conditional: Places in it of what the body does not draw.
        rest: Number of latents that follow the weights.
    """
    drawn = [record for i, record in enumerate(records) if i not in conditional]
    layers: list[tuple[int, int | None]] = []
    for place, weight in enumerate(drawn):
        if weight.name != "weight" or len(weight.shape) < 2 or weight.extra.get("transposed", False):
            continue
        biases = [
            i
            for i, other in enumerate(drawn)
            if other.name == "bias" and other.layer == weight.layer and other.shape == weight.shape[:1]
        ]
        layers.append((place, biases[0] if len(biases) == 1 else None))
    return UnitLayout.of([*(record.shape for record in drawn), (rest,)], layers)
