"""Layers of a network that are drawn conditionally on the layers before them, at learned inducing points."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bayeshnet.deprecation import warn_renamed
from bayeshnet.inducing._fused_sample import PseudoObservations
from bayeshnet.layers.module_versions import places_of
from bayeshnet.layers.torch_modes import own_gradients_apply
from bayeshnet.mnets.batched import batched_forward
from bayeshnet.mnets.chain import Chain, LinearStep, fused_linear, plain_linear
from bayeshnet.normal_density import log_standard_normal

__all__ = ["ConditionalDraw", "HeadNet", "InducingLayers", "LayerPrior"]


@dataclass(frozen=True, slots=True)
class LayerPrior:
    """A conditional layer: its place in the network's table, and its Gaussian prior.

    Attributes:
        weight: Index of the weight in the parameter table.
        bias: Index of the bias, or None.
        loc: Prior mean of weight and bias ``[out, q]``, the bias last.
        scale: Prior standard deviation ``[out, q]``.

    Example:
        >>> LayerPrior(2, 3, loc=torch.zeros(1, 6), scale=torch.ones(1, 6)).same_scale
        True
    """

    weight: int
    bias: int | None
    loc: Tensor
    scale: Tensor

    @property
    def same_scale(self) -> bool:
        """Whether all outputs have the same prior scales, so that one matrix serves them all."""
        return bool((self.scale == self.scale[:1]).all())


@dataclass(frozen=True, slots=True)
class HeadNet:
    """A network whose last operation is a linear layer, told apart from the network before it.

    Attributes:
        features: The network without the layer: called with all weights, it returns the layer's inputs.
        weight: Index of the layer's weight in the parameter table.
        bias: Index of its bias, or None.

    Example:
        >>> from bayeshnet.mnets import ModuleMainNet
        >>> HeadNet(ModuleMainNet(nn.Sequential(nn.Linear(2, 5), nn.Tanh())), weight=2, bias=3).weight
        2
    """

    features: nn.Module
    weight: int
    bias: int | None


@dataclass(frozen=True, slots=True)
class ConditionalDraw:
    """Draws of the conditional layers, with their density.

    Attributes:
        values: Whitened weights ``[S, q, out]`` of each layer.
        log_probs: Log-density ``[S]`` of each, given what comes before.
        last: What the last layer is conditional on.
        common: What all outputs of the last layer have in common, where only their differences are observed.
        finished: Whether the last layer was drawn too.

    Example:
        >>> from bayeshnet.mnets.chain import Chain, LinearStep
        >>> layer = LayerPrior(0, None, loc=torch.zeros(1, 2), scale=torch.ones(1, 2))
        >>> net = Chain((LinearStep(0, None),))
        >>> points = InducingLayers(net, [layer], torch.randn(8, 2), [torch.zeros(8, 1)], [torch.zeros(8)])
        >>> values, log_probs = points.draw(3, [None], finish=False).finish(torch.tensor([0, 2]))
        >>> values[0].shape, log_probs[0].shape
        (torch.Size([2, 2, 1]), torch.Size([2]))
    """

    values: list[Tensor]
    log_probs: list[Tensor]
    last: PseudoObservations
    common: _Common | None = None
    finished: bool = True

    @property
    def log_weight(self) -> Tensor:
        """How well the layers before the last one explain its pseudo-targets: a log importance weight ``[S]``.

        The logarithm of the targets' density with the last layer integrated out, times prior over q of the layers
        before it.
        """
        before = len(self.values) - self.finished
        drawn = zip(self.values[:before], self.log_probs[:before], strict=True)
        ratios = [log_standard_normal(value.flatten(1)) - log_q for value, log_q in drawn]
        return torch.stack([*ratios, self.last.conditional().log_evidence]).sum(0)

    def finish(self, rows: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Draw the last layer for some of the samples, and return their values and log-densities, layer by layer."""
        gaussian = self.last.made or self.last.conditional()
        value, log_prob = gaussian.of_samples(rows).rsample()
        if self.common is not None:
            value, log_prob = self.common.add_to(value, log_prob)
        values, log_probs = ([part[rows] for part in parts] for parts in (self.values, self.log_probs))
        return [*values, value], [*log_probs, log_prob]


class _Points(nn.Module):
    """What is learned for one layer: pseudo-observations and the free form of the conditional."""

    def __init__(self, targets: Tensor, log_precision: Tensor, size: int) -> None:
        super().__init__()
        out, device = targets.shape[1], targets.device
        self.targets = nn.Parameter(targets.to(torch.float64))
        self.log_precision = nn.Parameter(log_precision.to(torch.float64))
        self.offset = nn.Parameter(torch.zeros(size, out, dtype=torch.float64, device=device))
        self.log_scale = nn.Parameter(torch.zeros(size, dtype=torch.float64, device=device))
        self.log_spread = nn.Parameter(torch.zeros(out, dtype=torch.float64, device=device))


class _Common(nn.Module):
    r"""What all outputs of a layer have in common, if only their differences are observed.

    .. math:: W = H B^T + u \mathbf{1}^T / \sqrt{\mathrm{out}}, \quad u \sim N(0, \mathrm{diag}(s^2))

    for whitened weights W ``[q, out]``, an orthonormal basis B of the differences, and H ``[q, out - 1]``. With the
    same Gaussian prior for all outputs u is independent of H in the posterior, too. The learned s follows the prior's
    scale.

    Args:
        out: Number of outputs.
        size: Number q of weights of each.
        device: Where it lies.
    """

    def __init__(self, out: int, size: int, *, device: torch.device) -> None:
        super().__init__()
        # Row k of the lower triangle: 1 for all outputs before k, -k for output k (Helmert).
        rows = torch.ones(out, out, dtype=torch.float64, device=device).tril(-1)[1:]
        steps = torch.arange(1, out, dtype=torch.float64, device=device)
        rows[:, 1:] -= torch.diag(steps)
        self.register_buffer("basis", (rows / (steps * (steps + 1.0)).sqrt().unsqueeze(1)).t().contiguous())
        self.basis: Tensor
        self.log_scale = nn.Parameter(torch.zeros(size, dtype=torch.float64, device=device))

    def add_to(self, value: Tensor, log_prob: Tensor) -> tuple[Tensor, Tensor]:
        """Weights ``[S, q, out]`` and their log-density ``[S]``, of H ``[S, q, out - 1]`` and its log-density."""
        log_scale, basis = self.log_scale.double(), self.basis.double()
        noise = torch.randn(value.shape[:-1], dtype=value.dtype, device=value.device)
        part = (noise * (log_scale.exp() / math.sqrt(len(basis)))).unsqueeze(-1)
        return value @ basis.t() + part, log_prob + log_standard_normal(noise) - log_scale.sum()

    def log_prob(self, weights: Tensor) -> Tensor:
        """Log-density ``[S]`` of u, of weights ``[S, q, out]``."""
        log_scale = self.log_scale.double()
        noise = weights.sum(-1) / math.sqrt(weights.shape[-1]) * (-log_scale).exp()
        return log_standard_normal(noise) - log_scale.sum()


class InducingLayers(nn.Module):
    """Draws the conditional layers of a network, given the weights of its other layers.

    Learned pseudo-inputs are pushed through the layers drawn so far; a conditional layer is drawn from the exact
    linear-Gaussian conditional given its pseudo-targets (:class:`~bayeshnet.inducing.linear_gaussian.
    LayerConditional`), in float64 whatever the dtype of the weights.

    Args:
        net: The network as a chain of linear layers and functions, or with its last layer told apart.
        layers: The conditional layers, from input to output. For a :class:`HeadNet` one.
        inputs: Start of the pseudo-inputs ``[m, ...]``.
        targets: Start of the pseudo-targets ``[m, out]`` of each layer.
        log_precision: Start of the logarithm of their precisions ``[m]``, of each layer.
        logit_differences: Whether the last layer's outputs are logits, of which only differences matter:
            pseudo-targets are of these, and what all outputs have in common is drawn from its prior. Where the prior
            differs between outputs their sum is not independent of the differences, and all are conditional.
        renamed: ``contrasts``, the old name of ``logit_differences``.

    Example:
        >>> from bayeshnet.mnets.chain import Chain, LinearStep
        >>> chain = Chain((LinearStep(0, None), torch.tanh, LinearStep(1, None)))
        >>> last = LayerPrior(1, None, loc=torch.zeros(1, 5), scale=torch.ones(1, 5))
        >>> points = InducingLayers(chain, [last], torch.randn(8, 2), [torch.zeros(8, 1)], [torch.zeros(8)])
        >>> draw = points.draw(3, [torch.randn(3, 5, 2), None])
        >>> draw.values[0].shape, draw.log_probs[0].shape
        (torch.Size([3, 5, 1]), torch.Size([3]))
    """

    def __init__(
        self,
        net: Chain | HeadNet,
        layers: Sequence[LayerPrior],
        inputs: Tensor,
        targets: Sequence[Tensor],
        log_precision: Sequence[Tensor],
        *,
        logit_differences: bool = False,
        **renamed: bool,
    ) -> None:
        super().__init__()
        if renamed:
            logit_differences = _with_new_name(renamed)
        self._net = net
        # Registered, so that its buffers (statistics of a batch norm, say) move with the guide.
        self.head_body = net.features if isinstance(net, HeadNet) else None
        self._layers = tuple(layers)
        self._conditional = tuple(layer.weight for layer in layers)
        self.inputs = nn.Parameter(inputs.detach().clone())
        sizes = [layer.loc.shape[1] for layer in layers]
        self._same_scale = tuple(layer.same_scale for layer in layers)
        apart = logit_differences and self._same_scale[-1]
        self.common = _Common(*layers[-1].loc.shape, device=layers[-1].loc.device) if apart else None
        self.points = nn.ModuleList(
            _Points(self.observed_part(i, target), precision, size)
            for i, (target, precision, size) in enumerate(zip(targets, log_precision, sizes, strict=True))
        )
        self._centred = tuple(not bool(layer.loc.any()) for layer in layers)
        for i, layer in enumerate(layers):
            self.register_buffer(f"loc_{i}", self.observed_part(i, layer.loc.to(torch.float64).t()).t())
            self.register_buffer(f"scale_{i}", layer.scale.to(torch.float64))
        self.places = places_of(self)
        """Where the parameters lie; see :mod:`bayeshnet.layers.module_versions`."""

    @property
    def cost(self) -> int:
        """Numbers that the largest matrix of features has, for one sample."""
        groups = (1 if same else len(layer.loc) for layer, same in zip(self._layers, self._same_scale, strict=True))
        sizes = (layer.loc.shape[1] for layer in self._layers)
        return self.num_inducing * max(size * num for size, num in zip(sizes, groups, strict=True))

    def keep(self, num: int) -> None:
        """Keep the first points, in place, which then weigh as much as all did together.

        Args:
            num: Number of points to keep, at most those that there are.
        """
        gain = math.log(self.num_inducing / num)
        self.inputs = nn.Parameter(self.inputs.detach()[:num].clone())
        for points in self.points:
            part: Any = points
            part.targets = nn.Parameter(part.targets.detach()[:num].clone())
            part.log_precision = nn.Parameter(part.log_precision.detach()[:num] + gain)
        self.places = places_of(self)

    @property
    def num_inducing(self) -> int:
        """Number m of pseudo-inputs."""
        return self.inputs.shape[0]

    def observed_part(self, i: int, outputs: Tensor) -> Tensor:
        """What the pseudo-targets of conditional layer i are of: its outputs ``[..., out]``, or their differences."""
        if self.common is None or i < len(self._layers) - 1:
            return outputs
        # A guide may have been converted to another dtype as a whole.
        return outputs.double() @ self.common.basis.double()

    def draw(
        self,
        num: int,
        weights: Sequence[Tensor | None],
        given: Sequence[Tensor] | None = None,
        *,
        log_precision: Tensor | None = None,
        finish: bool = True,
    ) -> ConditionalDraw:
        """Draw the conditional layers, or condition them where their weights are given.

        Args:
            num: Number of samples S.
            weights: For each entry of the network's table the weights ``[S, *shape]``; None for conditional layers.
            given: Whitened weights ``[S, q, out]`` of the conditional layers, whose density is asked for.
            log_precision: Logarithm ``[S]`` of a factor of the precisions of the last layer's pseudo-targets, which
                are observations: they are worth more where the noise of a sample is small.
            finish: Draw the last layer; otherwise :meth:`ConditionalDraw.finish` does it later, for some samples.
        """
        values: list[Tensor] = []
        log_probs: list[Tensor] = []
        layers: list[PseudoObservations] = []

        def condition(features: Tensor, fused: bool) -> Tensor:
            i = len(values)
            last = i == len(self._layers) - 1
            layer, shift = self._observed(i, features, log_precision if last else None)
            layers[:] = [layer]
            if last and not finish:
                return features
            if given is None:
                value, log_prob = layer.rsample(fused=fused)
                if last and self.common is not None:
                    value, log_prob = self.common.add_to(value, log_prob)
            else:
                value = given[i].to(torch.float64)
                log_prob = layer.conditional().log_prob(self.observed_part(i, value))
                if last and self.common is not None:
                    log_prob = log_prob + self.common.log_prob(value)
            values.append(value)
            log_probs.append(log_prob)
            # Only what follows needs the outputs.
            return features if last else self._outputs(i, layer, value, shift).to(features.dtype)

        if isinstance(self._net, HeadNet):
            self._push_features(self._net, num, weights, condition)
        else:
            self._push_chain(self._net, num, weights, condition)
        return ConditionalDraw(values, log_probs, layers[0], self.common, finish)

    def _observed(
        self, i: int, features: Tensor, log_factor: Tensor | None
    ) -> tuple[PseudoObservations, Tensor | None]:
        """What layer i is conditional on, and what its prior mean adds to its outputs, if anything."""
        points: Any = self.points[i]
        # A guide may have been converted to another dtype as a whole.
        loc, scale = getattr(self, f"loc_{i}").double(), getattr(self, f"scale_{i}").double()
        log_precision = points.log_precision.double()
        if log_factor is not None:
            log_precision = log_precision + log_factor.double().unsqueeze(-1)
        observed = PseudoObservations(
            features,
            self._layers[i].bias is not None,
            points.targets.double(),
            log_precision,
            scale[:1] if self._same_scale[i] else scale,
            points.offset.double(),
            points.log_scale.double(),
            points.log_spread.double(),
        )
        if self._centred[i]:
            return observed, None
        shift = observed.full_features() @ loc.t()
        return replace(observed, targets=observed.targets - shift), shift

    def _outputs(self, i: int, observed: PseudoObservations, whitened: Tensor, shift: Tensor | None) -> Tensor:
        """Outputs of layer i at the pseudo-inputs, for its whitened weights ``[S, q, out]``."""
        out = observed.full_features() @ (whitened * getattr(self, f"scale_{i}").double().t())
        return out if shift is None else out + shift

    def _push_chain(
        self, chain: Chain, num: int, weights: Sequence[Tensor | None], condition: Callable[[Tensor, bool], Tensor]
    ) -> None:
        h: Any = self.inputs
        fused = own_gradients_apply(h.device)  # asked once for all layers: nothing in between changes it
        linear = fused_linear if fused else plain_linear
        for step in chain.steps:
            if isinstance(step, nn.Dropout):
                continue  # pseudo-observations are of the network without it
            if not isinstance(step, LinearStep):
                h = step(h)
            elif step.weight in self._conditional:
                h = condition(h if h.dim() == 3 else h.expand(num, *h.shape), fused)
                if step.weight == self._conditional[-1]:
                    return
            else:
                matrix: Any = weights[step.weight]
                bias = None if step.bias is None else weights[step.bias]
                h = linear(h if h.dim() == 3 else h.expand(num, *h.shape), matrix, bias)

    def _push_features(
        self, net: HeadNet, num: int, weights: Sequence[Tensor | None], condition: Callable[[Tensor, bool], Tensor]
    ) -> None:
        # The network ignores the weights of the layer that it lacks; they only have to have the right shape.
        shapes = [record.shape for record in net.features.param_table]  # pyright: ignore[reportAttributeAccessIssue, reportGeneralTypeIssues]
        full = [
            self.inputs.new_zeros(()).expand(num, *shape) if w is None else w
            for w, shape in zip(weights, shapes, strict=True)
        ]
        features = batched_forward(net.features, full, self.inputs).flatten(1, -2)
        condition(features, own_gradients_apply(features.device))

    @staticmethod
    def start_precision(num_rows: int, num_inducing: int, noise: float) -> float:
        """Logarithm of the precision with which m points weigh as much as N observations of this noise."""
        return math.log(num_rows / (num_inducing * noise**2))


def _with_new_name(renamed: Mapping[str, bool]) -> bool:
    """Return ``logit_differences`` as given by its old name.

    Raises:
        TypeError: If a name has never been one of an argument.
    """
    for name in renamed:
        if name != "contrasts":
            raise TypeError(f"InducingLayers.__init__() got an unexpected keyword argument {name!r}")
    warn_renamed("InducingLayers(contrasts=...)", "InducingLayers(logit_differences=...)")
    return renamed["contrasts"]
