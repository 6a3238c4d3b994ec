"""The weights of a network: some drawn by a body, the others conditionally on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor

from bayeshnet.families.flat_distribution import FlatDistribution, last_made_of, state_of
from bayeshnet.inducing.layers import ConditionalDraw, InducingLayers
from bayeshnet.normal_density import log_standard_normal

__all__ = ["ConditionalWeights", "FlatLayout"]

# Without gradients, so many float64 numbers of features are worked on at once: 8 MB, about a processor's cache.
_CHUNK = 2**20

# So many sets of rivals estimate the density of a value that was not drawn here.
_SETS = 8


@dataclass(frozen=True, slots=True)
class FlatLayout:
    """Where the tensors lie in the flat vector of all latents.

    Attributes:
        shapes: Shape of each tensor of the network, in table order, as it lies in the vector.
        rest: Number of latents that follow the network's weights.
        layers: For each conditional layer the indices of its weight and bias (or None).

    Example:
        >>> layout = FlatLayout(((5, 2), (5,), (1, 5), (1,)), 1, ((2, 3),))
        >>> layout.sizes, layout.body_sizes
        ([10, 5, 5, 1, 1], [10, 5, 1])
    """

    shapes: tuple[tuple[int, ...], ...]
    rest: int
    layers: tuple[tuple[int, int | None], ...]

    @property
    def conditional(self) -> set[int]:
        """Indices of the tensors that are drawn conditionally."""
        return {i for layer in self.layers for i in layer if i is not None}

    @property
    def sizes(self) -> list[int]:
        """Number of elements of each part of the vector: the tensors, then the rest."""
        return [*(math.prod(shape) for shape in self.shapes), self.rest]

    @property
    def body_sizes(self) -> list[int]:
        """The same for the parts that the body draws."""
        conditional = self.conditional
        return [size for i, size in enumerate(self.sizes) if i not in conditional]


class ConditionalWeights(FlatDistribution):
    r"""A distribution over all weights, in which some layers are conditional on the others.

    .. math:: q(u) = q_\mathrm{body}(u_b) \prod_l q(u_l \mid u_b, u_{<l})

    in whitened coordinates, ``w = loc + scale * u``. The conditional factors are exact Gaussians, see
    :class:`~bayeshnet.inducing.layers.InducingLayers`. Where the body has a density at foreign values, so has
    this distribution.

    With ``num_candidates`` K > 1, a draw that needs no gradient is the one of K independent candidates that the
    pseudo-targets chose: with probability proportional to

    .. math:: a_k = \bigl(\hat Z(u_k) \, p(u_k) / q_\mathrm{body}(u_k)\bigr)^\tau

    where Z is the density of the pseudo-targets, the last layer integrated out, p the prior, and tau ``power``. What is
    evaluated as log q is :math:`\log q(u_k) + \log(K a_k / \sum_l a_l)`, with which the ELBO is a bound on the
    evidence for any a; for a that are exact it is the importance-weighted one (Cremer, Morris & Duvenaud,
    https://arxiv.org/abs/1704.02916), and the draws are closer to the posterior with every candidate. Draws with a
    gradient, as in training, have one candidate: the same parameters serve both.

    Args:
        body: A distribution over R^n, n being the number of latents that are not drawn conditionally; None if n is 0.
        inducing: The conditional layers.
        layout: Where everything lies in the vector of all latents.
        loc: Prior mean of all latents ``[D]``.
        scale: Prior standard deviation ``[D]``.
        log_precision: From latents that are no weights ``[S, rest]`` the logarithm ``[S]`` of a factor of the
            pseudo-targets' precisions, for observation noise that is inferred.
        prior_scale: Prior standard deviations ``[n]`` of the body's latents in whitened coordinates, where they are
            other than 1; for choosing among candidates.
        num_candidates: Number of candidates K of a draw without gradient.
        power: The exponent tau, a tensor without dimensions; 1 by default.

    Example:
        >>> from torch import nn
        >>> from bayeshnet import AutoHypernet, BayesianModel, likelihoods
        >>> x = torch.randn(20, 2)
        >>> net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))
        >>> model = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.1))
        >>> q = AutoHypernet(model, example=(x, x[:, 0])).get_posterior()
        >>> w = q.rsample((7,))
        >>> w.shape, q.log_prob(w).shape
        (torch.Size([7, 21]), torch.Size([7]))
    """

    def __init__(
        self,
        body: TorchDistribution | None,
        inducing: InducingLayers,
        layout: FlatLayout,
        *,
        loc: Tensor,
        scale: Tensor,
        log_precision: Callable[[Tensor], Tensor] | None = None,
        prior_scale: Tensor | None = None,
        num_candidates: int = 1,
        power: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.body, self.inducing, self.layout = body, inducing, layout
        self.loc, self.scale = loc, scale
        self.log_precision, self.prior_scale, self.num_candidates = log_precision, prior_scale, num_candidates
        self.power = loc.new_ones(()) if power is None else power
        super().__init__(len(loc), validate_args=validate_args)

    # ------------------------------------------------------------------ sampling and density

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        """Draw ``[*sample_shape, *batch_shape, D]``, differentiable with respect to body and inducing points."""
        shape = Size(sample_shape) + self.batch_shape
        num = math.prod(shape)
        if torch.is_grad_enabled():
            whitened, body, draw = self._draw(num)
            made_of = None if self.body is None else last_made_of(self.body)
            rows = self._join(body, draw.values)

            def log_q() -> Tensor:
                return self._log_body(whitened) + draw.log_prob

            made = _Made(log_q, whitened, made_of)
        else:
            size = max(1, _CHUNK // (self.inducing.cost * self.num_candidates))
            counts = [min(size, num - done) for done in range(0, num, size)] or [0]
            parts = [self._chosen(count) for count in counts]
            rows, log_probs = (torch.cat(column) for column in zip(*parts, strict=True))
            made = _Made(lambda: log_probs)

        return self._remember(rows.reshape(shape + self.event_shape), made)

    def state(self) -> Any:
        """See :meth:`FlatDistribution.state`."""
        return self.inducing.state(), state_of(self.body, self.loc, self.scale, self.power)

    def _chosen(self, num: int) -> tuple[Tensor, Tensor]:
        """Draws ``[num, D]``, each chosen from its candidates, and their log q ``[num]``."""
        if self.num_candidates == 1 or num == 0:
            whitened, body, draw = self._draw(num)
            return self._join(body, draw.values), self._log_body(whitened) + draw.log_prob
        whitened, body, draw = self._draw(num * self.num_candidates, finish=False)
        log_body = self._log_body(whitened)
        log_weight = self._log_weight(whitened, log_body, draw).reshape(num, self.num_candidates)
        choice = torch.multinomial(log_weight.softmax(-1), 1)
        excess = math.log(self.num_candidates) + log_weight.log_softmax(-1).gather(1, choice).squeeze(1)
        places = choice.squeeze(1) + self.num_candidates * torch.arange(num, device=choice.device)
        chosen = draw.finish(places)
        rows = self._join([part[places] for part in body], chosen.values)
        return rows, chosen.log_prob + log_body[places] + excess

    def _draw(self, num: int, *, finish: bool = True) -> tuple[Tensor, list[Tensor], ConditionalDraw]:
        """Whitened latents of the body, the parts of the vector that they make, and what is conditional on them."""
        whitened = self.loc.new_zeros(num, 0) if self.body is None else self.body.rsample(Size((num,)))
        body = self._body_parts(whitened)
        return whitened, body, self._condition(num, body, finish=finish)

    def _condition(
        self, num: int, body: Sequence[Tensor], given: Sequence[Tensor] | None = None, *, finish: bool = True
    ) -> ConditionalDraw:
        """The conditional layers, given parts of the body that ``num`` draws made."""
        layout, conditional, parts = self.layout, self.layout.conditional, iter(body)
        weights = [
            None if i in conditional else next(parts).reshape(num, *shape) for i, shape in enumerate(layout.shapes)
        ]
        log_precision = None if self.log_precision is None else self.log_precision(body[-1])
        return self.inducing.draw(num, weights, given, log_precision=log_precision, finish=finish)

    def _log_body(self, whitened: Tensor) -> Tensor:
        """Log-density of the body's whitened latents ``[S]``."""
        return whitened.sum(-1) if self.body is None else self.body.log_prob(whitened)  # 0, of no latents

    def _log_weight(self, whitened: Tensor, log_body: Tensor, draw: ConditionalDraw) -> Tensor:
        """Logarithm of a, ``[S]``; finite."""
        scale = self.prior_scale
        log_prior = log_standard_normal(whitened if scale is None else whitened / scale)
        log_prior = log_prior if scale is None else log_prior - scale.log().sum()
        log_weight = self.power * (draw.log_weight + log_prior - log_body)
        return torch.nan_to_num(log_weight, nan=-1e30, posinf=1e30, neginf=-1e30)

    def candidates(self, num: int) -> tuple[Tensor, Tensor, Tensor]:
        """``num`` single candidates: latents ``[num, D]``, their log q and the logarithm of their a ``[num]``."""
        whitened, body, draw = self._draw(num)
        log_body = self._log_body(whitened)
        log_q = log_body + draw.log_prob - self.scale.log().sum()
        return self._join(body, draw.values), log_q, self._log_weight(whitened, log_body, draw)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density ``[*sample_shape, *batch_shape]``.

        Of a value that was not drawn here, and without gradients, the effect of several candidates is estimated from
        fresh ones; with gradients it is left out. So it is in the gradient at draws that were made without gradients:
        that is the score of single candidates, which is not 0 on average over the best of several. Draws made with
        gradients, as every ELBO and ``ReweightedWakeSleep`` make them, are single candidates, and exact.

        Raises:
            ValueError: If the last dimension is not D.
            RuntimeError: If the body has no density at a foreign value.
        """
        origin = self._recall(value)
        rows = value.reshape(-1, value.shape[-1])
        if origin is None:
            log_q = self._foreign_log_q(rows)
        else:
            made: _Made = origin.made_of
            log_q = made.log_q() if origin.live else self._fixed_log_q(rows, made)
        return self._shaped(log_q.to(value.dtype) - self.scale.log().sum(), value)

    def log_prob_of(self, rows: Tensor, made_of: _Made) -> Tensor:
        """See :meth:`FlatDistribution.log_prob_of`."""
        return self._fixed_log_q(rows, made_of).to(rows.dtype) - self.scale.log().sum()

    def _fixed_log_q(self, rows: Tensor, made: _Made) -> Tensor:
        """The number that :meth:`log_prob` has for a draw, with the gradient of a single candidate's density at it."""
        whitened, given = self._divide(rows)
        log_q = self._condition(len(rows), self._body_parts(whitened), given).log_prob
        if isinstance(self.body, FlatDistribution) and made.whitened is not None and made.body is not None:
            # The numbers of the draw, whose noise is known, and the gradient of what these values make of them.
            known = made.whitened.detach() + (whitened - whitened.detach())
            log_q = log_q + self.body.log_prob_of(known, made.body)
        else:
            log_q = log_q + self._log_body(whitened)
        with torch.no_grad():
            number = made.log_q()
        return log_q + (number - log_q).detach()

    def _foreign_log_q(self, rows: Tensor) -> Tensor:
        whitened, given = self._divide(rows)
        draw = self._condition(len(rows), self._body_parts(whitened), given)
        log_body = self._log_body(whitened)
        log_q = log_body + draw.log_prob
        if torch.is_grad_enabled() or self.num_candidates == 1:
            return log_q
        log_weight = self._log_weight(whitened, log_body, draw)
        other, _, rival = self._draw(_SETS * (self.num_candidates - 1), finish=False)
        rivals = self._log_weight(other, self._log_body(other), rival).reshape(_SETS, -1).logsumexp(1)
        # K a / (a + those of K - 1 rivals), averaged over sets of rivals.
        share = log_weight - torch.logaddexp(log_weight, rivals.unsqueeze(-1))
        return log_q + math.log(self.num_candidates) + share.logsumexp(0) - math.log(_SETS)

    # ------------------------------------------------------------------ the flat vector

    def _body_parts(self, whitened: Tensor) -> list[Tensor]:
        """The body's parts ``[S, *]`` of the vector of all latents."""
        layout, conditional = self.layout, self.layout.conditional
        spans: list[list[int]] = []
        start = 0
        for i, size in enumerate(layout.sizes):
            if i not in conditional and (size or not spans):
                if spans and spans[-1][1] == start:
                    spans[-1][1] = start + size
                else:
                    spans.append([start, start + size])
            start += size
        # All at once: each operation on a part would cost as much as one on all of them.
        loc, scale = (_joined([v[begin:end] for begin, end in spans]) for v in (self.loc, self.scale))
        return list(torch.addcmul(loc, whitened, scale).split(layout.body_sizes, dim=-1))

    def _join(self, body: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        """All latents ``[S, D]`` of the body's parts and the whitened weights of the conditional layers."""
        layout = self.layout
        locs, scales = self.loc.split(layout.sizes), self.scale.split(layout.sizes)
        placed: dict[int, Tensor] = {}
        for (weight, bias), value in zip(layout.layers, values, strict=True):
            matrix = value.transpose(1, 2).to(self.loc.dtype)  # [S, out, q]
            found = [(weight, matrix)]
            if bias is not None:
                each = matrix.split([matrix.shape[-1] - 1, 1], dim=-1)
                found = list(zip((weight, bias), each, strict=True))
            for i, part in found:
                placed[i] = torch.addcmul(locs[i], part.flatten(1), scales[i])
        parts = iter(body)
        return torch.cat([placed[i] if i in placed else next(parts) for i in range(len(layout.sizes))], dim=-1)

    def _divide(self, latents: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The inverse of :meth:`_join`, from values of any origin."""
        layout = self.layout
        whitened = ((latents - self.loc) / self.scale).split(layout.sizes, dim=-1)
        conditional = layout.conditional
        body = torch.cat([part for i, part in enumerate(whitened) if i not in conditional], dim=-1)
        values: list[Tensor] = []
        for weight, bias in layout.layers:
            matrix = whitened[weight].reshape(-1, *layout.shapes[weight])
            joint = matrix if bias is None else torch.cat([matrix, whitened[bias].unsqueeze(-1)], dim=-1)
            values.append(joint.transpose(1, 2))
        return body, values


@dataclass(frozen=True, slots=True)
class _Made:
    """What draws were made of.

    Attributes:
        log_q: Their log-density ``[S]``, less the logarithm of the scale.
        whitened: The body's latents ``[S, n]``, where each draw is a single candidate.
        body: What the body made these of, if it remembers.
    """

    log_q: Callable[[], Tensor]
    whitened: Tensor | None = None
    body: Any = None


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
