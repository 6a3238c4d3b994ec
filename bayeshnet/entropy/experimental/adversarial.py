"""Density of a hypernetwork learned by a discriminator against a Gaussian."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus
from torch.nn.utils import get_total_norm

from bayeshnet.checks import require_count, require_positive
from bayeshnet.entropy.change_of_variables import ChangeOfVariables
from bayeshnet.entropy.linearised import Linearised
from bayeshnet.entropy.no_gradient import refuse_gradient
from bayeshnet.entropy.protocol import Diagnosis, LogDensity
from bayeshnet.entropy.sampler import Draw, NoisySampler
from bayeshnet.errors import ArgumentError, DiscriminatorWarning, NonFiniteLossError, UsageError
from bayeshnet.hnets.hnet_perturbation_wrapper import HPerturbWrapper
from bayeshnet.normal_density import log_standard_normal
from bayeshnet.typing import LogDensities, WeightBatch

__all__ = ["Adversarial"]

_DECAY = 0.9
_SATURATED = 0.95


class Adversarial(nn.Module, LogDensity):
    r"""Learn log q with a discriminator, by adversarial variational Bayes with adaptive contrast.

    .. math:: \log q(w) \approx \log N(w; m, \mathrm{diag}\, s^2) + T((w - m) / s)

    m and s follow the means and standard deviations of the draws, and T, a small network, is trained to tell draws of q
    from draws of that Gaussian: of the logistic loss
    :math:`E_q \log(1 + e^{-T}) + E_N \log(1 + e^{T})` the log ratio of both densities is the minimiser. T starts at 0.

    **It belongs to one sampler and learns**: pass a new object to every guide and for every condition. The first
    distribution or guide that is built with it makes the discriminator. Every :meth:`log_prob` with gradients
    enabled, in training mode, first trains it for ``steps`` steps on draws of its own, by an optimiser of its own. What
    it has learned is kept when the backward pass follows; an evaluation without one, such as ``Trace_ELBO().loss``,
    changes nothing. Its parameters require no gradient, so whatever trains the guide leaves them alone. As a part of a
    guide they are saved and moved with it; the optimiser's momenta begin anew then.

    It asks nothing of the hypernetwork but draws, and applies to shared and to independent noise. It fails where q and
    the Gaussian are nearly separable, as they are for hundreds of weights: the discriminator is right about every draw
    and its logits no longer measure a ratio. It also lags behind a sampler that moves fast. :meth:`diagnose` measures
    both.

    Source: Mescheder, Nowozin & Geiger, Adversarial Variational Bayes, ICML 2017.

    Args:
        hidden: Widths of the discriminator's hidden layers.
        steps: Steps of the discriminator per call.
        lr: Learning rate of its Adam.
        batch_size: Draws of the sampler, and as many of the Gaussian, per step; at least 2.

    Raises:
        ArgumentError: If an argument is out of its range, or the object is used for a second sampler.

    Example:
        >>> from bayeshnet.distributions import ImplicitWeights
        >>> from bayeshnet.hnets import HMLP, HPerturbWrapper
        >>> hnet = HMLP([[3]], uncond_in_size=2, cond_in_size=0, verbose=False)
        >>> q = ImplicitWeights(HPerturbWrapper(hnet, sigma_noise=0.5, verbose=False), estimator=Adversarial(steps=2))
        >>> log_q = q.log_prob(q.rsample((4,)))
        >>> log_q.shape
        torch.Size([4])
        >>> log_q.mean().backward()  # keeps the two steps that the discriminator has made
    """

    noise = None
    mean: Tensor
    variance: Tensor

    def __init__(
        self, *, hidden: Sequence[int] = (128, 128), steps: int = 2, lr: float = 3e-3, batch_size: int = 256
    ) -> None:
        super().__init__()
        if any(width < 1 for width in hidden):
            raise ArgumentError(f"hidden: is {tuple(hidden)}; pass positive widths, such as (128, 128).")
        require_count("steps", steps)
        require_positive("lr", lr)
        require_count("batch_size", batch_size, least=2, advice="; 100 or more to be of use")
        self.hidden = tuple(hidden)
        self.steps = steps
        self.lr = lr
        self.batch_size = batch_size
        self.discriminator: nn.Sequential | None = None
        """T; None until the first distribution is built."""
        self._optimizer: torch.optim.Adam | None = None
        # Whose draws it learns. In a tuple, so that the hypernetwork does not become a part of the estimator.
        self._owner: tuple[HPerturbWrapper, int | None, Tensor | None] | None = None

    def __repr__(self) -> str:
        return f"Adversarial(hidden={self.hidden}, steps={self.steps}, lr={self.lr}, batch_size={self.batch_size})"

    # ------------------------------------------------------------------ one discriminator for one sampler

    def check(self, sampler: NoisySampler) -> None:
        """See :meth:`LogDensity.check`; the first sampler becomes the one that the discriminator is made for.

        Raises:
            ArgumentError: If the estimator belongs to another sampler.
            DensityError: If the sampler has no density per sample.
        """
        LogDensity.check(self, sampler)
        if self._owner is None:
            self._build(sampler)
            return
        hnet, cond_id, cond_input = self._owner
        same_input = (cond_input is None and sampler.cond_input is None) or (
            cond_input is not None and sampler.cond_input is not None and torch.equal(cond_input, sampler.cond_input)
        )
        if hnet is not sampler.hnet or cond_id != sampler.cond_id or not same_input:
            raise ArgumentError(
                "estimator: is an Adversarial() with a discriminator for the draws of another hypernetwork or "
                "condition; pass a new one for each."
            )

    def _build(self, sampler: NoisySampler) -> None:
        like = sampler.sigma
        widths = [sampler.event_dim, *self.hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.SiLU()]
        last = nn.Linear(widths[-1], 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        made = nn.Sequential(*layers, last).to(dtype=like.dtype, device=like.device)
        self.discriminator = made.requires_grad_(False)
        cond_input = sampler.cond_input
        self._owner = (sampler.hnet, sampler.cond_id, None if cond_input is None else cond_input.detach().clone())
        with torch.no_grad():
            weights = sampler.draw(self.batch_size).weights
        self.register_buffer("mean", weights.mean(0))
        self.register_buffer("variance", weights.var(0))

    def _built(self) -> nn.Sequential:
        if self.discriminator is None:
            raise UsageError(
                "estimator: this Adversarial() has no discriminator yet; it is made when a distribution or guide is "
                "built with it, or by estimator.check(sampler)."
            )
        return self.discriminator

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Adversarial:
        super()._apply(fn, recurse)
        self._optimizer = None  # its momenta stayed behind in the old dtype or on the old device
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_optimizer": None}

    # ------------------------------------------------------------------ training

    def train_discriminator(self, sampler: NoisySampler, steps: int) -> None:
        """Train T on fresh draws, which does not change the sampler.

        A backward pass does it by itself; call this to let T catch up before a density is read off.

        Args:
            sampler: The sampler that the estimator belongs to.
            steps: Number of steps.

        Raises:
            NonFiniteLossError: If the sampler's draws or the discriminator's loss are not finite; nothing has changed
                then.
        """
        self.check(sampler)
        network = self._built()
        self._optimizer = self._optimizer or self._new_optimizer()
        names, params = zip(*network.named_parameters(), strict=True)
        for _ in range(steps):
            with torch.no_grad():
                weights = sampler.draw(self.batch_size).weights
                mean = self.mean.lerp(weights.mean(0), 1.0 - _DECAY)
                variance = self.variance.lerp(weights.var(0), 1.0 - _DECAY)
                both = torch.cat([(weights - mean) / variance.sqrt(), torch.randn_like(weights)])
            with torch.enable_grad():
                leaves = [param.detach().requires_grad_() for param in params]
                logits = functional_call(network, dict(zip(names, leaves, strict=True)), (both,)).squeeze(-1)
                real, contrast = logits.split(self.batch_size)
                loss = softplus(-real).mean() + softplus(contrast).mean()
                gradients = torch.autograd.grad(loss, leaves)
            if not math.isfinite(loss.detach()) or not math.isfinite(get_total_norm(gradients)):
                bad = int((~weights.isfinite().all(-1)).sum())
                raise NonFiniteLossError(
                    f"estimator: the loss of its discriminator is {float(loss.detach())} or its gradient not finite, "
                    f"from {self.batch_size} draws of which {bad} are not finite. Look for parameters of the guide "
                    "that are NaN or huge, and lower its learning rate."
                )
            self.mean.copy_(mean)
            self.variance.copy_(variance)
            for param, gradient in zip(params, gradients, strict=True):
                param.grad = gradient
            self._optimizer.step()
            for param in params:
                param.grad = None

    def _new_optimizer(self) -> torch.optim.Adam:
        return torch.optim.Adam(self._built().parameters(), lr=self.lr)

    def _whiten(self, weights: Tensor) -> Tensor:
        return (weights - self.mean) / self.variance.sqrt()

    # ------------------------------------------------------------------ density

    def log_prob(self, sampler: NoisySampler, draw: Draw) -> LogDensities:
        """See :meth:`LogDensity.log_prob`.

        With gradients enabled, in training mode, by a discriminator that has made ``steps`` steps more. It is kept if a
        backward pass follows, and forgotten otherwise.
        """
        if not (self.training and torch.is_grad_enabled()):
            return self._learned(sampler, draw.weights)
        before = self._state()
        try:
            self.train_discriminator(sampler, self.steps)
            log_q, after = self._learned(sampler, draw.weights), self._state()
        finally:
            self._restore(before)
        if log_q.requires_grad:
            log_q.register_hook(lambda _: self._restore(after))
        return log_q

    @torch.no_grad()
    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
        """Copies of all that training changes: parameters, moments, and the optimiser's state."""
        optimizer = None if self._optimizer is None else copy.deepcopy(self._optimizer.state_dict())
        return {name: value.clone() for name, value in self.state_dict().items()}, optimizer

    @torch.no_grad()
    def _restore(self, state: tuple[dict[str, Tensor], dict[str, Any] | None]) -> None:
        values, optimizer = state
        own = self.state_dict()
        for name, value in values.items():
            own[name].copy_(value)
        if optimizer is None:
            self._optimizer = None
        else:
            self._optimizer = self._optimizer or self._new_optimizer()
            self._optimizer.load_state_dict(copy.deepcopy(optimizer))

    def log_prob_at(self, sampler: NoisySampler, weights: WeightBatch) -> LogDensities:
        """The same function at any weights, differentiable with respect to them, but not to the sampler.

        Away from where the draws and the Gaussian are, T was never trained and means nothing. It does not know what the
        sampler is made of, so ``backward`` to the hypernetwork's parameters raises.
        """
        return refuse_gradient(self._learned(sampler, weights), sampler.parameters(), self._no_score())

    def _learned(self, sampler: NoisySampler, weights: Tensor) -> Tensor:
        self._built()
        # Copies: the backward pass of another call trains the originals in place, maybe before that of this one.
        mean, std = self.mean.clone(), self.variance.sqrt()
        white = (weights - mean) / std
        return log_standard_normal(white) - std.log().sum() + self._logits(white)

    def _logits(self, white: Tensor) -> Tensor:
        network = self._built()
        copies = {name: param.detach().clone() for name, param in network.named_parameters()}
        return functional_call(network, copies, (white,)).squeeze(-1)

    # ------------------------------------------------------------------ diagnosis

    @torch.no_grad()
    def diagnose(self, sampler: NoisySampler, *, num_samples: int = 256, thorough: bool = True) -> Diagnosis:
        """Try the discriminator on fresh draws, and its density against another estimate.

        ``accuracy`` is the share of draws of both kinds that it assigns rightly: 0.5 if q is that Gaussian, near 1 if
        it is saturated. ``overconfidence`` is its mean confidence less the accuracy, 0 if it is calibrated, with
        standard error ``overconfidence_error``. ``entropy_gap`` is its entropy less that of change of variables
        (shared noise) or of the linearised density (independent noise), in nats, as far as those can be trusted, with
        ``entropy_gap_error``. If ``thorough``, ``log_mass`` is the logarithm of the total probability of the learned
        density, 0 if it is normalised, estimated with sixteen times the draws.
        """
        self.check(sampler)
        draw = sampler.draw(num_samples)
        real = self._logits(self._whiten(draw.weights)).double()
        contrast = self._logits(torch.randn_like(draw.weights)).double()
        right = torch.cat([(real > 0), (contrast <= 0)]).double()
        confidence = torch.sigmoid(torch.cat([real, contrast]).abs())
        reference = ChangeOfVariables() if sampler.shared else Linearised()
        gap = (reference.log_prob(sampler, draw) - self.log_prob_at(sampler, draw.weights)).double()
        values = {
            "accuracy": float(right.mean()),
            "overconfidence": float((confidence - right).mean()),
            "overconfidence_error": float((confidence - right).std() / math.sqrt(len(right))),
            "entropy_gap": float(gap.mean()),
            "entropy_gap_error": float(gap.std() / math.sqrt(num_samples)),
        }
        if thorough:
            more = torch.randn(16 * num_samples, sampler.event_dim, dtype=draw.z.dtype, device=draw.z.device)
            values["log_mass"] = float(torch.logsumexp(self._logits(more).double(), 0) - math.log(len(more)))
        advice: list[str] = []
        if values["accuracy"] > _SATURATED:
            advice.append(
                f"The discriminator tells {values['accuracy']:.1%} of the draws from those of a Gaussian, so its "
                f"logits are no measure of their densities. {sampler.event_dim} weights are too many for it; use "
                "ChangeOfVariables() (noise='shared') or Linearised() (noise='independent')."
            )
        if abs(values["overconfidence"]) > max(0.05, 3.0 * values["overconfidence_error"]):
            advice.append(
                f"The discriminator's confidence is {values['overconfidence']:+.2f} from its accuracy, so its density "
                "is not calibrated. Train it more per step (Adversarial(steps=...)) or at a lower rate (lr=...), or "
                "train the guide more slowly."
            )
        if abs(values["entropy_gap"]) > max(0.1, 3.0 * values["entropy_gap_error"]):
            advice.append(
                f"The learned entropy is {values['entropy_gap']:+.2f} nats from that of {reference!r}, and the ELBO is "
                "off by as much unless that one is. Train the discriminator more (Adversarial(steps=...)), or use "
                f"{reference!r}."
            )
        return Diagnosis(values, advice, DiscriminatorWarning)
