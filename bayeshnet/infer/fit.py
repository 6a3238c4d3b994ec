"""Stochastic variational inference, a thin loop over plain Pyro."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import pyro
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor, nn
from tqdm.auto import tqdm

from bayeshnet.errors import (
    ArgumentError,
    ArgumentTypeError,
    ConvergenceWarning,
    DatasetSizeWarning,
    NonFiniteLossError,
    UsageError,
)
from bayeshnet.infer.arguments import call_arguments, inputs_and_targets, require_targets
from bayeshnet.infer.auto_hypernet import AutoHypernet
from bayeshnet.infer.blame import UNKNOWN_CAUSE, non_finite_cause
from bayeshnet.infer.candidates import CALIBRATION_ROWS
from bayeshnet.infer.first_step import check_optimizer, check_options, check_pair, checked_elbo
from bayeshnet.infer.history import FlatElbo, History
from bayeshnet.models.bayesian_model import BayesianModel
from bayeshnet.models.param_sites import ParamCapture

__all__ = ["fit", "flat_then_cosine"]

Callback: TypeAlias = Callable[[int, History], "bool | None"]


def flat_then_cosine(steps: int, *, flat: float = 0.4, final: float = 0.02) -> Callable[[int], float]:
    """Factor of the learning rate per step: 1 for a share of the steps, then a cosine down to ``final``.

    Example:
        >>> schedule = flat_then_cosine(1000)
        >>> schedule(0), schedule(399), round(schedule(999), 3)
        (1.0, 1.0, 0.02)
    """

    def factor(step: int) -> float:
        start = flat * steps
        if step < start or steps <= 1:
            return 1.0
        progress = min(1.0, (step - start) / max(1.0, steps - 1 - start))
        return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return factor


def fit(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Any,
    steps: int = 3000,
    *,
    lr: float = 0.01,
    lr_schedule: Callable[[int], float] | None = None,
    num_particles: int = 16,
    loss: ELBO | None = None,
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None = None,
    clip_norm: float | None = None,
    stop: FlatElbo | Callable[[list[float]], bool] | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> History:
    """Fit a guide to a model by stochastic variational inference.

    One step is one call of Pyro's ``loss_and_grads`` and one of a torch optimiser over all parameters, those of the
    modules and those of ``pyro.param``. Nothing is kept in the objects given but their parameters' new values, so a
    second call goes on from there, as does any other loop over Pyro's ``SVI``.

    Args:
        model: A Pyro model.
        guide: Its guide: one of this package, one of Pyro's, or any other.
        data: The arguments of the model at each step: a tuple ``(x, y)``, a dict or one tensor; or an iterable of such
            batches, a ``DataLoader`` for instance, which is gone through again and again.
        steps: Number of steps.
        lr: Learning rate of Adam. A guide with ``param_groups(lr)`` divides it among its parameters; the
            ``decay`` of a group is the strength of decoupled weight decay, as in AdamW, with any optimiser.
        lr_schedule: Factor of the learning rate by step; by default 1 for 40 % of the steps, then a cosine to 0.02.
        num_particles: Posterior samples per step, drawn and evaluated in one vectorised call. A model that is no
            :class:`~bayeshnet.BayesianModel` is tried first: if it fails so, or gives other densities than draw by
            draw, a warning says so and draws are made in turn.
        loss: Another Pyro ELBO, for a model that cannot be vectorised or another objective; excludes ``num_particles``.
        optimizer: Makes an optimiser of parameter groups, ``lambda groups: torch.optim.SGD(groups, lr=0.1)``.
        clip_norm: Bound on the norm of the gradient, of model and guide together; ``math.inf`` for none. By default
            the ``clip_norm`` of the guide, if it has one: an :class:`~bayeshnet.AutoHypernet` has 10 where its
            hypernetwork has as many noise inputs as latents, which is where it folds most easily.
        stop: Ends the fit early; :class:`~bayeshnet.infer.FlatElbo` does when the ELBO no longer rises. Given a flat
            learning rate by default, since a falling one flattens everything.
        callbacks: Called as ``callback(step, history)`` after each step; True ends the fit.
        progress: Show a progress bar.

    Returns:
        The history of losses.

    Raises:
        RuntimeError: If the loss or a gradient becomes NaN or infinite; the message names the site.
        ValueError: If a number is out of range, the data are empty, or the guide is that of another model.
        TypeError: If an argument is of another type.

    Example:
        >>> import pyro.distributions as dist
        >>> from bayeshnet import AutoHypernet
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)
        >>> y = torch.tensor([1.0, 2.0])
        >>> guide = AutoHypernet(model, example=(y,))
        >>> history = fit(model, guide, (y,), steps=20, progress=False)
        >>> len(history), history.stopped
        (20, 'steps')
    """
    clip_norm = getattr(guide, "clip_norm", None) if clip_norm is None else clip_norm
    check_options(
        steps=steps,
        num_particles=num_particles,
        lr=lr,
        clip_norm=clip_norm,
        callbacks=callbacks,
        optimizer=optimizer,
        lr_schedule=lr_schedule,
        stop=stop,
    )
    check_pair(model, guide)
    if loss is not None and num_particles != 16:
        raise ArgumentError(
            "loss, num_particles: both were given; set num_particles in the ELBO that is passed as loss."
        )
    # Known for networks; elsewhere Pyro finds it out.
    nesting = 1 if isinstance(model, BayesianModel) else math.inf
    elbo: Any = loss or Trace_ELBO(
        num_particles=num_particles, vectorize_particles=num_particles > 1, max_plate_nesting=nesting
    )
    schedule = lr_schedule or ((lambda _: 1.0) if stop is not None else flat_then_cosine(steps))
    batches = _batches(data)
    _warn_of_missing_size(model, data)
    _prepare(model, guide, data)
    trainer = _Trainer(model, guide, elbo, lr, schedule, optimizer, clip_norm)
    history = History()
    bar = tqdm(total=steps, disable=not progress, desc="fit", unit="step")
    began = time.perf_counter()
    stack = contextlib.ExitStack()
    stack.enter_context(warnings.catch_warnings())
    # Pyro's warning of a NaN loss; an error that says more follows.
    warnings.filterwarnings("ignore", message="Encountered NaN", category=UserWarning)
    try:
        for step in range(steps):
            args, kwargs = next(batches)
            require_targets(model, args, kwargs, "data")
            if step == 0 and loss is None and not isinstance(model, BayesianModel):
                trainer.elbo = checked_elbo(elbo, model, guide, args, kwargs)
            value, rate = trainer.step(step, args, kwargs)
            if step == 0:
                # Pyro's checks are worth their time once; they are what a wrong model or guide fails on.
                stack.enter_context(pyro.validation_enabled(False))
            history.losses.append(value)
            history.lrs.append(rate)
            bar.update()
            if step % 50 == 0:
                bar.set_postfix_str(f"-ELBO {value:.4g}", refresh=False)
            ends = [callback(step, history) for callback in callbacks]  # all are called, even if one ends the fit
            if any(ends):
                history.stopped = "callback"
                break
            if stop is not None and stop(history.losses):
                history.stopped = "flat"
                break
    except KeyboardInterrupt:
        history.stopped = "interrupted"
    finally:
        stack.close()
        history.seconds = time.perf_counter() - began
        bar.close()
    if stop is not None and history.stopped == "steps":
        warnings.warn(
            f"The fit used all {steps} steps before its stopping rule was met; the ELBO may still rise. Raise steps, "
            "or call fit again to go on.",
            ConvergenceWarning,
            stacklevel=2,
        )
    _calibrate(guide, data)
    _warn_of_estimator(guide)
    return history


class _Trainer:
    """One step of SVI with one torch optimiser for all parameters."""

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        elbo: Any,
        lr: float,
        schedule: Callable[[int], float],
        make_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None,
        clip_norm: float | None,
    ) -> None:
        self.model, self.guide, self.elbo = model, guide, elbo
        self.lr, self.schedule, self.clip_norm = lr, schedule, clip_norm
        self.make_optimizer = make_optimizer or _adam
        self.optimizer: torch.optim.Optimizer | None = None
        self.params: dict[int, Tensor] = {}
        for part in (model, guide):  # gradients left by earlier work would be added to ours
            if isinstance(part, nn.Module):
                _drop_gradients(part.parameters())

    def step(self, step: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[float, float]:
        rng_state = torch.get_rng_state()  # to repeat the step if it fails, for a message that names the site
        with ParamCapture(known=step > 0) as capture:
            try:
                value = float(self.elbo.loss_and_grads(self.model, self.guide, *args, **kwargs))
            except ValueError as error:  # what Pyro's validation makes of NaN
                self._raise_if_non_finite(step, math.nan, args, kwargs, rng_state, error)
                raise
        if not math.isfinite(value):
            _drop_gradients(capture.params.values())
            self._raise_if_non_finite(step, value, args, kwargs, rng_state)
        new = [param for key, param in capture.params.items() if key not in self.params]
        if new:
            self._take_in(new)
        if self.optimizer is None:
            raise UsageError("model, guide: neither has a parameter, so there is nothing to optimise.")
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.params.values(), self.clip_norm)
        factor = self.schedule(step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["full_lr"] * factor
        self.optimizer.step()
        self._decay(self.optimizer)
        _drop_gradients(self.params.values())
        return value, factor * self.lr

    @staticmethod
    @torch.no_grad()
    def _decay(optimizer: torch.optim.Optimizer) -> None:
        """Apart from the gradient, whatever the optimiser makes of that."""
        for group in optimizer.param_groups:
            if group.get("decay"):
                factor = max(0.0, 1.0 - group["lr"] * group["decay"])
                for param in group["params"]:
                    param.mul_(factor)

    def _raise_if_non_finite(
        self,
        step: int,
        value: float,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        rng_state: Tensor,
        error: Exception | None = None,
    ) -> None:
        with pyro.validation_enabled(False):
            params = self.params.values()
            cause = non_finite_cause(self.model, self.guide, args, kwargs, rng_state, params)
        if cause is None and error is not None:
            return  # not a matter of NaN: Pyro's own message says it better
        raise NonFiniteLossError(f"step {step}: the loss is {value}; {cause or UNKNOWN_CAUSE}") from error

    def _take_in(self, params: list[Tensor]) -> None:
        """Optimise these parameters too: all of them at the first step, rarely one that appears later."""
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
        for group in self.optimizer.param_groups:
            group.setdefault("full_lr", group["lr"])


def _drop_gradients(params: Iterable[Tensor]) -> None:
    """Not zeroed but dropped: the next backward pass then writes instead of adding."""
    for param in params:
        param.grad = None


def _adam(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    params = [p for group in groups for p in group["params"]]
    # The fused kernel takes a tenth of the time for the few small tensors of a guide.
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in params)
    return torch.optim.Adam(groups, fused=fused)


def _batches(data: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    if isinstance(data, Tensor | Mapping | tuple):
        arguments = call_arguments(data, "data")
        while True:
            yield arguments
    if not isinstance(data, Iterable) or isinstance(data, str | bytes):
        raise ArgumentTypeError(
            f"data: is a {type(data).__name__}; pass the model's arguments as a tuple (x, y), or an iterable of "
            "batches such as a DataLoader."
        )
    if isinstance(data, Iterator):
        raise ArgumentTypeError(
            "data: is an iterator, which can be gone through once only; pass a list of batches or a DataLoader."
        )
    while True:
        count = 0
        for batch in data:
            count += 1
            yield call_arguments(batch, "data")
        if count == 0:
            raise ArgumentError("data: is an empty iterable; there is no batch to fit to.")


def _rows(data: Any, num: int) -> tuple[Tensor, Tensor] | None:
    """The first rows of the data, inputs and targets: ``num`` of them and the rest of their batch, or all."""
    parts: list[tuple[Tensor, Tensor]] = []
    single = isinstance(data, Tensor | Mapping | tuple)
    for batch in [data] if single else data:
        args, kwargs = call_arguments(batch, "data")
        x, y = inputs_and_targets(args, kwargs)
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            return None  # the model itself will say what is missing
        parts.append((x, y))
        if sum(len(x) for x, _ in parts) >= num:
            break
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def _prepare(model: Callable[..., Any], guide: Any, data: Any) -> None:
    """Give a guide what it lacks: a copy its model, inducing points their rows."""
    if not isinstance(guide, AutoHypernet):
        return
    if isinstance(model, BayesianModel):
        guide.attach(model)  # it may be a copy of the one that the guide was built for
    if guide.wants_rows and (rows := _rows(data, guide.wants_rows)) is not None:
        guide.place_inducing(*rows)


def _calibrate(guide: Any, data: Any) -> None:
    """Let a guide that chooses among candidates find out how far to trust what it chooses by."""
    if not isinstance(guide, AutoHypernet) or guide.num_candidates == 1 or guide.inducing is None:
        return
    with torch.random.fork_rng(devices=[]):  # the caller's stream goes on as if nothing had been drawn, or shuffled
        rows = _rows(data, CALIBRATION_ROWS)
        if rows is not None and isinstance(guide.original_model, BayesianModel):
            guide.calibrate(*rows)


def _warn_of_missing_size(model: Any, data: Any) -> None:
    if not isinstance(model, BayesianModel) or model.dataset_size is not None:
        return
    dataset, batch_size = getattr(data, "dataset", None), getattr(data, "batch_size", None)
    if dataset is None or batch_size is None or not hasattr(dataset, "__len__") or len(dataset) <= batch_size:
        return
    warnings.warn(
        f"The data come in batches of {batch_size} out of {len(dataset)} rows, and the model has no dataset_size: each "
        "batch is taken for the whole data set and the prior counts too much. Pass "
        f"BayesianModel(..., dataset_size={len(dataset)}).",
        DatasetSizeWarning,
        stacklevel=3,
    )


def _warn_of_estimator(guide: Any) -> None:
    """The cheap part of the diagnosis, on the fitted guide."""
    if not isinstance(guide, AutoHypernet):
        return
    # A diagnosis draws random numbers; the caller's stream goes on as if it had not.
    with torch.random.fork_rng(devices=[]):
        diagnosis = guide.diagnose(num_samples=64, thorough=False)
    for advice in diagnosis.advice:
        warnings.warn(advice, diagnosis.category, stacklevel=3)
