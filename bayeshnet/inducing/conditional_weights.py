"""The weights of a network, of which some layers are drawn conditionally on the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions.transforms import Transform

from bayeshnet.deprecation import warn_renamed
from bayeshnet.errors import ArgumentError
from bayeshnet.families.flat_distribution import FlatDistribution
from bayeshnet.inducing.flat_layout import FlatLayout
from bayeshnet.inducing.layers import ConditionalDraw, InducingLayers
from bayeshnet.normal_density import log_standard_normal

__all__ = ["ConditionalWeights", "NoisePrecision"]

# Without gradients, so many float64 numbers of features are worked on at once: 8 MB, about a processor's cache.
_CHUNK = 2**20

# So many sets of proposals estimate the density of a value that was not sampled here.
_SETS = 8

_RENAMED = {"body": "unconditional", "num_candidates": "num_proposals", "power": "tempering_exponent"}
_RENAMED_ATTRIBUTES = {**_RENAMED, "candidates": "proposals"}
_REQUIRED: Any = None


@dataclass(frozen=True, slots=True)
class NoisePrecision:
    """From the latent noise of a likelihood to the logarithm of its precision.

    Attributes:
        shape: Shape of the latent, which is one number.
        transform: From the unconstrained latent to its value; None for the identity.
        is_precision: Whether it is the precision, or the standard deviation.

    Example:
        >>> NoisePrecision(Size(), None, is_precision=False)(torch.tensor([[0.1], [0.2]]))
        tensor([4.6052, 3.2189], dtype=torch.float64)
    """

    shape: Size
    transform: Transform | None
    is_precision: bool

    def __call__(self, rest: Tensor) -> Tensor:
        """Return ``[S]``, of unconstrained latents ``[S, 1]``."""
        value: Any = rest.reshape(-1, *self.shape)
        if self.transform is not None:
            value = self.transform(value)
        value = value.reshape(-1).double()
        return value.log() if self.is_precision else -2.0 * value.log()


class ConditionalWeights(FlatDistribution):
    r"""A distribution over all weights, in which some layers are conditional on the others.

    .. math:: q(u) = q_0(u_0) \prod_l q(u_l \mid u_0, u_{<l})

    in whitened coordinates, ``w = loc + scale * u``. The conditional factors are exact Gaussians, see
    :class:`~bayeshnet.distributions.InducingLayers`. Where :math:`q_0`, the distribution of the unconditional latents,
    has a density at values that it did not sample, so has this distribution.

    With ``num_proposals`` K > 1, draws that need no gradient are made by importance resampling: each is one of K
    independent proposals, chosen by the pseudo-targets with probability proportional to

    .. math:: a_k = \bigl(\hat Z(u_k) \, p(u_k) / q_0(u_k)\bigr)^\tau

    where Z is the density of the pseudo-targets, the last layer integrated out, p the prior, and tau the tempering
    exponent. What is evaluated as log q is :math:`\log q(u_k) + \log(K a_k / \sum_l a_l)`, with which the ELBO is a
    bound on the evidence for any a; for a that are exact it is the importance-weighted one (Cremer, Morris & Duvenaud,
    https://arxiv.org/abs/1704.02916), and the draws are closer to the posterior with every proposal. Draws with a
    gradient, as in training, are single proposals: the same parameters serve both.

    At a value that was not sampled here, and without gradients, :meth:`log_prob` estimates the effect of resampling
    from fresh proposals; with gradients it leaves it out. So it does in the gradient at draws that were made without
    gradients: that is the score of single proposals, which is not 0 on average over resampled ones. Draws made with
    gradients, as every ELBO and ``ReweightedWakeSleep`` make them, are single proposals, and exact.

    Args:
        unconditional: The distribution of the latents that are not drawn conditionally, over R^n; None if n is 0.
        inducing: The conditional layers.
        layout: Where everything lies in the vector of all latents.
        loc: Prior mean of all latents ``[D]``.
        scale: Prior standard deviation ``[D]``.
        log_precision: From latents that are not weights ``[S, rest]`` the logarithm ``[S]`` of a factor of the
            pseudo-targets' precisions, for observation noise that is inferred.
        prior_scale: Prior standard deviations ``[n]`` of the unconditional latents in whitened coordinates, where they
            are other than 1; for resampling.
        num_proposals: Number of proposals K of a draw without gradient.
        tempering_exponent: The exponent tau, a tensor without dimensions; 1 by default.
        renamed: Old names of arguments, which go in the next version.

    Raises:
        ArgumentError: If ``inducing`` or ``layout`` is left out.

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
        unconditional: TorchDistribution | None = None,
        inducing: InducingLayers = _REQUIRED,
        layout: FlatLayout = _REQUIRED,
        *,
        loc: Tensor,
        scale: Tensor,
        log_precision: Callable[[Tensor], Tensor] | None = None,
        prior_scale: Tensor | None = None,
        num_proposals: int = 1,
        tempering_exponent: Tensor | None = None,
        validate_args: bool | None = None,
        **renamed: Any,
    ) -> None:
        if renamed:
            both = {
                "unconditional": unconditional is not None,
                "num_proposals": num_proposals != 1,
                "tempering_exponent": tempering_exponent is not None,
            }
            new = _with_new_names(renamed, [name for name, given in both.items() if given])
            unconditional = new.get("unconditional", unconditional)
            num_proposals = new.get("num_proposals", num_proposals)
            tempering_exponent = new.get("tempering_exponent", tempering_exponent)
        if inducing is _REQUIRED or layout is _REQUIRED:  # defaults only since `unconditional` had another name
            raise ArgumentError("inducing, layout: one is None; pass InducingLayers and the FlatLayout of all latents.")
        self.unconditional, self.inducing, self.layout = unconditional, inducing, layout
        self.loc, self.scale = loc, scale
        self.log_precision, self.prior_scale, self.num_proposals = log_precision, prior_scale, num_proposals
        self.tempering_exponent = loc.new_ones(()) if tempering_exponent is None else tempering_exponent
        own = {"loc": loc, "scale": scale, "tempering_exponent": self.tempering_exponent}
        self.depends_on = (*inducing.places, own)
        self._flat: FlatDistribution | None = None
        if isinstance(unconditional, FlatDistribution):
            self._flat, self.depends_on = unconditional, (*self.depends_on, *unconditional.depends_on)
        super().__init__(Size(), loc.shape, validate_args=validate_args)

    def __getattr__(self, name: str) -> Any:
        if name not in _RENAMED_ATTRIBUTES:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        warn_renamed(f"ConditionalWeights.{name}", f"ConditionalWeights.{_RENAMED_ATTRIBUTES[name]}")
        return getattr(self, _RENAMED_ATTRIBUTES[name])

    # ------------------------------------------------------------------ sampling

    def draw(self, num: int) -> tuple[Tensor, _Made]:
        """See :meth:`FlatDistribution.draw`."""
        if torch.is_grad_enabled():
            drawn = self._propose(num)
            rows = self._join(drawn.parts, drawn.layers.values)
            return rows, _Made(rows.dtype, None, drawn.whitened, drawn.made_of, drawn.layers.log_probs)
        size = max(1, _CHUNK // (self.inducing.cost * self._num_weighed()))
        counts = [min(size, num - done) for done in range(0, num, size)] or [0]
        rows, log_q = (torch.cat(column) for column in zip(*map(self._resample, counts), strict=True))
        return rows, _Made(rows.dtype, log_q)

    def _resample(self, num: int) -> tuple[Tensor, Tensor]:
        """Draw ``[num, D]``, each resampled from its proposals, with their log q ``[num]``."""
        number = self._num_weighed()
        several = number > 1 and num > 0
        drawn = self._propose(num * number, finish=not several)
        if not several:
            log_q = self._log_unconditional(drawn.whitened, drawn.made_of)
            return self._join(drawn.parts, drawn.layers.values), log_q + torch.stack(drawn.layers.log_probs).sum(0)
        log_q, log_weight = self._weigh(drawn.whitened, drawn.layers, drawn.made_of)
        log_weight = log_weight.reshape(num, number)
        choice = torch.multinomial(log_weight.softmax(-1), 1)
        excess = math.log(number) + log_weight.log_softmax(-1).gather(1, choice).squeeze(1)
        places = choice.squeeze(1) + number * torch.arange(num, device=choice.device)
        values, log_probs = drawn.layers.finish(places)
        rows = self._join([part[places] for part in drawn.parts], values)
        return rows, torch.stack(log_probs).sum(0) + log_q[places] + excess

    def _num_weighed(self) -> int:
        """Number of proposals of a draw; 1 where all weigh the same, so that any one of them has the distribution."""
        return self.num_proposals if self.num_proposals > 1 and bool(self.tempering_exponent != 0) else 1

    def _propose(self, num: int, *, finish: bool = True) -> _Proposals:
        """Draw ``num`` independent proposals."""
        made_of: Any = None
        if self._flat is not None:
            whitened, made_of = self._flat.draw(num)
        elif self.unconditional is not None:
            whitened = self.unconditional.rsample(Size((num,)))
        else:
            whitened = self.loc.new_zeros(num, 0)
        parts = self._parts(whitened)
        return _Proposals(whitened, made_of, parts, self._condition(num, parts, finish=finish))

    def _condition(
        self, num: int, parts: Sequence[Tensor], given: Sequence[Tensor] | None = None, *, finish: bool = True
    ) -> ConditionalDraw:
        """Draw or condition the conditional layers, given the other parts of ``num`` vectors."""
        layout, left = self.layout, iter(parts)
        weights = [
            None if i in layout.conditional else next(left).reshape(num, *shape)
            for i, shape in enumerate(layout.shapes)
        ]
        log_precision = None if self.log_precision is None else self.log_precision(parts[-1])
        return self.inducing.draw(num, weights, given, log_precision=log_precision, finish=finish)

    def _weigh(self, whitened: Tensor, layers: ConditionalDraw, made_of: Any = None) -> tuple[Tensor, Tensor]:
        """Return the log-density of unconditional latents and the logarithm of a, both ``[S]``; the latter finite."""
        scale = self.prior_scale
        log_prior = log_standard_normal(whitened if scale is None else whitened / scale)
        log_prior = log_prior if scale is None else log_prior - scale.log().sum()
        log_q = self._log_unconditional(whitened, made_of)
        log_weight = self.tempering_exponent * (layers.log_weight + log_prior - log_q)
        return log_q, torch.nan_to_num(log_weight, nan=-1e30, posinf=1e30, neginf=-1e30)

    def proposals(self, num: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw ``num`` single proposals.

        Returns:
            Latents ``[num, D]``, their log q ``[num]``, and the logarithm of their a ``[num]``.
        """
        drawn = self._propose(num)
        log_unconditional, log_weight = self._weigh(drawn.whitened, drawn.layers, drawn.made_of)
        log_q = log_unconditional + torch.stack(drawn.layers.log_probs).sum(0) - self.scale.log().sum()
        return self._join(drawn.parts, drawn.layers.values), log_q, log_weight

    # ------------------------------------------------------------------ density

    def log_prob_of_draw(self, made_of: _Made) -> Tensor:
        """See :meth:`FlatDistribution.log_prob_of_draw`."""
        return self._log_drawn(made_of).to(made_of.dtype) - self.scale.log().sum()

    def log_prob_of(self, rows: Tensor, made_of: _Made) -> Tensor:
        """See :meth:`FlatDistribution.log_prob_of`: the number of the draw, with the gradient of a single proposal."""
        whitened, given = self._divide(rows)
        log_q = torch.stack(self._condition(len(rows), self._parts(whitened), given).log_probs).sum(0)
        if self._flat is not None and made_of.whitened is not None and made_of.unconditional is not None:
            # The numbers of the draw, whose noise is known, and the gradient of what these values make of them.
            known = made_of.whitened.detach() + (whitened - whitened.detach())
            log_q = log_q + self._flat.log_prob_of(known, made_of.unconditional)
        else:
            log_q = log_q + self._log_unconditional(whitened)
        with torch.no_grad():
            number = self._log_drawn(made_of)
        return (log_q + (number - log_q).detach()).to(rows.dtype) - self.scale.log().sum()

    def _log_prob_at(self, rows: Tensor) -> Tensor:
        whitened, given = self._divide(rows)
        layers = self._condition(len(rows), self._parts(whitened), given)
        several = not torch.is_grad_enabled() and self._num_weighed() > 1
        log_q, log_weight = self._weigh(whitened, layers) if several else (self._log_unconditional(whitened), None)
        log_q = log_q + torch.stack(layers.log_probs).sum(0)
        if log_weight is not None:
            fresh = self._propose(_SETS * (self.num_proposals - 1), finish=False)
            others = self._weigh(fresh.whitened, fresh.layers, fresh.made_of)[1].reshape(_SETS, -1).logsumexp(1)
            # K a / (a + those of K - 1 other proposals), averaged over sets of them.
            share = log_weight - torch.logaddexp(log_weight, others.unsqueeze(-1))
            log_q = log_q + math.log(self.num_proposals) + share.logsumexp(0) - math.log(_SETS)
        return log_q.to(rows.dtype) - self.scale.log().sum()

    def _log_drawn(self, made_of: _Made) -> Tensor:
        """Return the log-density ``[S]`` of draws, less the logarithm of the scale."""
        if made_of.whitened is None:
            return made_of.log_q  # pyright: ignore[reportReturnType] - one of them is known
        log_q = self._log_unconditional(made_of.whitened, made_of.unconditional)
        return log_q + torch.stack(made_of.log_factors).sum(0)

    def _log_unconditional(self, whitened: Tensor, made_of: Any = None) -> Tensor:
        """Return the log-density ``[S]`` of unconditional latents; they were drawn right now if it is known how."""
        if self._flat is not None and made_of is not None:
            return self._flat.log_prob_of_draw(made_of)
        return whitened.sum(-1) if self.unconditional is None else self.unconditional.log_prob(whitened)  # 0, of none

    # ------------------------------------------------------------------ the flat vector

    def _parts(self, whitened: Tensor) -> Sequence[Tensor]:
        """Return the parts ``[S, *]`` of the vector of all latents that are not conditional."""
        layout = self.layout
        # All at once: each operation on a part would cost as much as one on all of them.
        loc, scale = (
            _joined([v[begin:end] for begin, end in layout.unconditional_spans]) for v in (self.loc, self.scale)
        )
        return torch.addcmul(loc, whitened, scale).split(layout.unconditional_sizes, dim=-1)

    def _join(self, parts: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        """Join the other parts and the whitened weights of the conditional layers to all latents ``[S, D]``."""
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
        left = iter(parts)
        return torch.cat([placed[i] if i in placed else next(left) for i in range(len(layout.sizes))], dim=-1)

    def _divide(self, latents: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Undo :meth:`_join`, for values of any origin."""
        layout = self.layout
        all_whitened = (latents - self.loc) / self.scale
        whitened = all_whitened.split(layout.sizes, dim=-1)
        values: list[Tensor] = []
        for weight, bias in layout.layers:
            matrix = whitened[weight].reshape(-1, *layout.shapes[weight])
            joint = matrix if bias is None else torch.cat([matrix, whitened[bias].unsqueeze(-1)], dim=-1)
            values.append(joint.transpose(1, 2))
        return layout.unconditional(all_whitened), values


@dataclass(frozen=True, slots=True)
class _Proposals:
    """Proposals: their unconditional latents and what these were made of, and what is conditional on them.

    Attributes:
        whitened: Unconditional latents ``[S, n]`` in whitened coordinates.
        made_of: What they were made of, if that is known.
        parts: The same as parts of the vector of all latents.
        layers: The conditional layers.
    """

    whitened: Tensor
    made_of: Any
    parts: Sequence[Tensor]
    layers: ConditionalDraw


@dataclass(frozen=True, slots=True)
class _Made:
    """What draws were made of.

    Attributes:
        dtype: That of the rows.
        log_q: Log-density ``[S]`` less the logarithm of the scale, of draws without gradient.
        whitened: Of single proposals the unconditional latents ``[S, n]``.
        unconditional: What these were made of, if that is known.
        log_factors: The conditional layers' log-densities ``[S]``.
    """

    dtype: torch.dtype
    log_q: Tensor | None
    whitened: Tensor | None = None
    unconditional: Any = None
    log_factors: list[Tensor] | tuple[Tensor, ...] = ()


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _with_new_names(renamed: Mapping[str, Any], given: Sequence[str]) -> dict[str, Any]:
    """Return arguments by their new names.

    Args:
        renamed: Arguments by their old names.
        given: New names of arguments that were given, too.

    Raises:
        ArgumentError: If an argument was given by both of its names.
        TypeError: If a name has never been one of an argument.
    """
    for name in renamed:
        if name not in _RENAMED:
            raise TypeError(f"ConditionalWeights.__init__() got an unexpected keyword argument {name!r}")
        if _RENAMED[name] in given:
            raise ArgumentError(f"{_RENAMED[name]}, {name}: both were given; leave out {name}, its old name.")
        warn_renamed(f"ConditionalWeights({name}=...)", f"ConditionalWeights({_RENAMED[name]}=...)")
    return {_RENAMED[name]: value for name, value in renamed.items()}
