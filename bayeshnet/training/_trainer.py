"""The steps of stochastic variational inference, none of which leaves parameters that are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from bayeshnet.errors import BayeshnetError, DensityError, NonFiniteLossError, UsageError
from bayeshnet.guides import GroupDecay
from bayeshnet.models.capabilities import has_rows
from bayeshnet.models.param_sites import ParamCapture
from bayeshnet.sites.arguments import inputs_and_targets
from bayeshnet.sites.kept_state import KeptBuffers, restored, tensors_of
from bayeshnet.sites.rows import check_rows
from bayeshnet.training._checks import check_optimizer
from bayeshnet.training._nonfinite import BAD_PARAMETER, UNKNOWN_CAUSE, gradient_cause, non_finite_cause
from bayeshnet.training._schedule import LearningRates, Schedule
from bayeshnet.training._terms import Terms

__all__ = ["Step", "Trainer"]

# Steps between copies of the parameters to go back to: an update can overflow though its gradient is finite.
_COPY_EVERY = 100


class Step(NamedTuple):
    """What a step has come to.

    Attributes:
        loss: Its loss, in nats.
        rate: The learning rate of the first parameter group.
        log_likelihood: The part of the ELBO that the observations have, in nats; None if the ELBO does not tell.
    """

    loss: float
    rate: float
    log_likelihood: float | None


class Trainer:
    """SVI with one torch optimiser for all parameters.

    Args:
        model: The model.
        guide: Its guide.
        elbo: Pyro's ELBO.
        lr: Learning rate.
        schedule: Its factor by step, or a scheduler; see :class:`LearningRates`.
        make_optimizer: From parameter groups to an optimiser; Adam by default.
        clip_norm: Bound on the norm of the gradient.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro.infer import Trace_ELBO
        >>> from pyro.infer.autoguide import AutoNormal
        >>> model = lambda: pyro.sample("z", dist.Normal(1.0, 1.0))
        >>> trainer = Trainer(model, AutoNormal(model), Trace_ELBO(), 0.1, lambda step: 0.5**step, None, None)
        >>> [round(trainer.step(step, (), {})[1], 3) for step in range(3)]
        [0.1, 0.05, 0.025]
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        elbo: Any,
        lr: float,
        schedule: Schedule,
        make_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None,
        clip_norm: float | None,
    ) -> None:
        self.model, self.guide = model, guide
        self.use(elbo)
        self.lr, self.rates, self.clip_norm = lr, LearningRates(schedule), clip_norm
        self.make_optimizer = make_optimizer or _adam
        self.optimizer: torch.optim.Optimizer | None = None
        self.params: dict[int, Tensor] = {}
        self.waves: list[list[Tensor]] = []  # those of the first step, and those of each later one that had new ones
        # A guide without hooks of its own has nobody else to see to the decay of its groups.
        self._decays: list[GroupDecay] | None = None if hasattr(guide, "begin_fit") else []
        self._buffers = KeptBuffers(model, guide)
        self._copies: dict[int, Tensor] = {}
        self._copied_at = 0
        for part in (model, guide):  # gradients left by earlier work would be added to ours
            if isinstance(part, nn.Module):
                _drop_gradients(part.parameters())

    def use(self, elbo: Any) -> None:
        """Use this ELBO from now on."""
        self._terms = Terms(elbo)
        self.elbo = self._terms.elbo

    def step(self, step: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Step:
        """Make a step: loss, gradients, and an update if all of them are finite.

        Args:
            step: Its number.
            args: Arguments of model and guide.
            kwargs: Keyword arguments.

        Returns:
            The loss, the learning rate of the first parameter group, and the log-likelihood.

        Raises:
            NonFiniteLossError: If loss or gradients are not finite. Parameters, buffers and the optimiser's state are
                then what they were before the step; where the last update overflowed, those of some steps before.
        """
        self._buffers.keep()
        try:
            made = self._step(step, args, kwargs)
        except BaseException:
            self._buffers.restore()
            _drop_gradients([*tensors_of(self.model, self.guide), *self.params.values()])
            raise
        self.rates.advance(made.loss, step)
        return made

    def _step(self, step: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Step:
        rng_state = torch.get_rng_state()  # to repeat the step if it fails, for a message that names the site
        if self.params and (step % _COPY_EVERY == 0 or not self._copies):
            self._copy(step)
        with ParamCapture(known=bool(self.params)) as capture:
            try:
                value = float(self.elbo.loss_and_grads(self.model, self.guide, *args, **kwargs))
            except DensityError as error:
                self._go_back(step, error)
                raise
            except BayeshnetError:
                raise
            except (ValueError, RuntimeError, IndexError) as error:
                self._explain(step, error, args, kwargs, rng_state, capture.params.values())
                raise
        new = [param for key, param in capture.current().items() if key not in self.params]
        log_likelihood = self._terms.take()
        if not math.isfinite(value):
            self._refuse_loss(step, value, args, kwargs, rng_state, new)
        if new:
            self.take_in(new, step)
            self._copy(step)
        if self.optimizer is None:
            raise UsageError("model, guide: neither has a parameter, so there is nothing to optimise.")
        self._bound_gradients(step, value, args, kwargs, rng_state)
        rate = self.rates.set(self.optimizer, step)
        self.optimizer.step()
        _drop_gradients(self.params.values())
        return Step(value, rate, log_likelihood)

    def finish(self, steps: int) -> None:
        """Raise if the last update has made a parameter NaN or infinite.

        Args:
            steps: Number of steps that were made.

        Raises:
            NonFiniteLossError: If there are any; they are then those of some steps before.
        """
        if self._bad_params():
            self._refuse_params(f"step {steps - 1}:")

    def close(self) -> None:
        """End the decay of this fit; the optimiser may be in use elsewhere."""
        for decay in self._decays or ():
            decay.remove()

    # ------------------------------------------------------------------ gradients and updates

    def _bound_gradients(
        self, step: int, value: float, args: tuple[Any, ...], kwargs: Mapping[str, Any], rng_state: Tensor
    ) -> None:
        """Raise if a gradient is not finite, before the optimiser sees it, and bound the norm of all."""
        params = self.params.values()
        gradients = [param.grad for param in params if param.grad is not None]
        dense = [gradient.coalesce().values() if gradient.is_sparse else gradient for gradient in gradients]
        norm = get_total_norm(dense)
        if not math.isfinite(norm):
            # The square of a finite number can overflow.
            norm = get_total_norm([gradient.double() for gradient in dense])
            if not math.isfinite(norm):
                self._refuse_gradients(step, value, args, kwargs, rng_state)
        if self.clip_norm is not None:
            clip_grads_with_norm_(params, self.clip_norm, norm)

    def take_in(self, params: list[Tensor], step: int) -> None:
        """Optimise these parameters too: all of them at the first step, rarely one that appears later."""
        self.waves.append(params)
        if self.optimizer is not None:
            self.rates.refuse_new(list(self._named(params)), step)
        wanted = {id(p) for p in params}
        grouping = getattr(self.guide, "param_groups", None)
        groups: list[dict[str, Any]] = []
        for group in grouping(self.lr) if grouping is not None else ():
            members = [p for p in group["params"] if id(p) in wanted]
            if members:
                groups.append({"lr": self.lr, **group, "params": members})
        grouped = {id(p) for group in groups for p in group["params"]}
        others = [p for p in params if id(p) not in grouped]
        if others:
            groups.append({"params": others, "lr": self.lr})
        self.params.update((id(p), p) for p in params)
        if self.optimizer is None:
            self.optimizer = check_optimizer(self.make_optimizer(groups))
        else:
            for group in groups:
                self.optimizer.add_param_group(group)
        if self._decays is not None:
            self._decays.append(GroupDecay(groups))

    # ------------------------------------------------------------------ what is not finite

    def _copy(self, step: int) -> None:
        """Copy the parameters, if they are finite; if not, the loss will say so."""
        if not self._bad_params():
            self._copies = {key: param.detach().clone() for key, param in self.params.items()}
            self._copied_at = step

    def _bad_params(self) -> list[str]:
        return [name for name, param in self._named().items() if not bool(torch.isfinite(param).all())]

    def _named(self, params: Iterable[Tensor] | None = None) -> dict[str, Tensor]:
        """Parameters by the best name there is; those that are optimised by default."""
        names: dict[int, str] = {}
        store = pyro.get_param_store()
        for name in store:
            names[id(store._params[name])] = name  # pyright: ignore[reportPrivateUsage] - the unconstrained ones
        for part in (self.model, self.guide):
            for name, param in part.named_parameters() if isinstance(part, nn.Module) else ():
                names[id(param)] = name
        params = self.params.values() if params is None else params
        return {names.get(id(param), f"parameter {i}"): param for i, param in enumerate(params)}

    def _refuse_params(self, when: str, error: Exception | None = None) -> None:
        bad = self._bad_params()
        self._set_back()
        shown = ", ".join(map(repr, bad[:4])) + (f" and {len(bad) - 4} more" if len(bad) > 4 else "")
        raise NonFiniteLossError(
            f"{when} {BAD_PARAMETER} It is {shown}; all parameters were set back to those before step "
            f"{self._copied_at}."
        ) from error

    def _go_back(self, step: int, error: DensityError) -> None:
        """Undo updates after which the guide has no density, though its parameters may be finite."""
        if not self._copies or step == self._copied_at:
            return  # nothing was updated since
        self._set_back()
        raise NonFiniteLossError(
            f"step {step}: {str(error).splitlines()[0]} All parameters were set back to those before step "
            f"{self._copied_at}."
        ) from error

    @torch.no_grad()
    def _set_back(self) -> None:
        for key, value in self._copies.items():
            self.params[key].copy_(value)

    def _refuse_loss(
        self,
        step: int,
        value: float,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        rng_state: Tensor,
        new: Iterable[Tensor],
        error: Exception | None = None,
    ) -> None:
        _drop_gradients([*self.params.values(), *new])
        if self._bad_params():
            self._refuse_params(f"step {step}: the loss is {value};", error)
        with restored(tensors_of(self.model, self.guide)), pyro.validation_enabled(False):
            cause = non_finite_cause(self.model, self.guide, args, kwargs, rng_state, new)
        if cause is None and error is not None:
            return  # not a matter of NaN: the error's own message says it better
        raise NonFiniteLossError(f"step {step}: the loss is {value}; {cause or UNKNOWN_CAUSE}") from error

    def _refuse_gradients(
        self, step: int, value: float, args: tuple[Any, ...], kwargs: Mapping[str, Any], rng_state: Tensor
    ) -> None:
        with restored(tensors_of(self.model, self.guide)), pyro.validation_enabled(False):
            cause = gradient_cause(
                lambda: self.elbo.loss_and_grads(self.model, self.guide, *args, **kwargs), rng_state, self._named()
            )
        raise NonFiniteLossError(
            f"step {step}: the loss is {value:.6g}, but {cause} Nothing was updated: the parameters are those before "
            "this step."
        )

    def _explain(
        self,
        step: int,
        error: Exception,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        rng_state: Tensor,
        new: Iterable[Tensor],
    ) -> None:
        """Raise what says better why a step has failed, if anything does: bad data, or a loss that is not finite.

        After the first step the model does not look at values any more, and torch fails on what it would refuse.
        """
        x, y = inputs_and_targets(args, kwargs)
        try:
            if has_rows(self.model) and isinstance(y, Tensor):
                check_rows(self.model, x, y, finite=False)  # of these the loss says more
        except BayeshnetError as better:
            raise better from error
        except Exception:  # the error at hand is the one to see
            return
        if isinstance(error, ValueError):  # what Pyro's validation makes of NaN
            self._refuse_loss(step, math.nan, args, kwargs, rng_state, new, error)


def _drop_gradients(params: Iterable[Tensor]) -> None:
    """Drop gradients instead of zeroing them: the next backward pass then writes instead of adding."""
    for param in params:
        param.grad = None


def _adam(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    params = [p for group in groups for p in group["params"]]
    # The fused kernel takes a tenth of the time for the few small tensors of a guide.
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in params)
    return torch.optim.Adam(groups, fused=fused)
