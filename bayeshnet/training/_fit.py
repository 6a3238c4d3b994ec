"""Stochastic variational inference, a thin loop over plain Pyro."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import pyro
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.elbo import ELBO
from tqdm.auto import tqdm

from bayeshnet.errors import ArgumentError, BayeshnetError, ConvergenceWarning, DatasetSizeWarning, UsageError
from bayeshnet.models.capabilities import plate_nesting, vectorises
from bayeshnet.sites.arguments import call_error, require_targets
from bayeshnet.sites.one_thread import one_thread
from bayeshnet.sites.shown_data import show_data
from bayeshnet.training._batches import Batches
from bayeshnet.training._checks import check_loss, check_options, check_pair, checked_elbo
from bayeshnet.training._schedule import Schedule
from bayeshnet.training._trainer import Trainer
from bayeshnet.training.history import FlatElbo, History

__all__ = ["fit", "flat_then_cosine"]

Callback: TypeAlias = Callable[[int, History], "bool | None"]


def flat_then_cosine(steps: int, *, flat: float = 0.4, final: float = 0.02) -> Callable[[int], float]:
    """Return a schedule: a factor of 1 for a share of the steps, then a cosine down to ``final``.

    Args:
        steps: Number of steps.
        flat: Share of the steps with a factor of 1.
        final: Factor of the last step.

    Returns:
        A function from the step to the factor, for ``lr_schedule`` of :func:`fit`.

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
    lr_schedule: Schedule | None = None,
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
    second call goes on from there, as does any other loop over Pyro's ``SVI``. Every submodule is trained in the mode
    it is in: a network given in ``eval()``, or a batch norm in it, stays so.

    Whatever else a guide needs is done by its hooks: ``begin_fit(model, data)`` before the first step,
    ``end_fit(model, data)`` after the last, and ``cancel_fit()`` instead where the fit fails before its end. A guide
    may also have ``param_groups(lr)`` and ``clip_norm``. All are optional, and a loop of your own may call the same;
    see :meth:`AutoHypernet.begin_fit`.

    Loss and gradients are checked before each update, so that an error leaves parameters that are finite. Ctrl-C ends
    the fit, and the history so far is returned. Pyro keeps its effect handlers in one stack for all
    threads: while a thread is in ``fit``, others cannot call it, nor ``predict``; run two fits in two processes.

    Args:
        model: A Pyro model.
        guide: Its guide: one of this package, one of Pyro's, or any other.
        data: The arguments of the model at each step: a tuple ``(x, y)``, a dict or one tensor; or an iterable of such
            batches, a ``DataLoader`` for instance, which is repeated as often as needed. A warning says so where the
            ``dataset_size`` of a :class:`~bayeshnet.BayesianModel` is missing or not that of the data.
        steps: Number of steps.
        lr: Learning rate of Adam. A guide with ``param_groups(lr)`` divides it among its parameters; the
            ``decay`` of a group is the strength of decoupled weight decay, as in AdamW, with any optimiser (a guide
            that has ``begin_fit`` sees to that itself, as those of this package do).
        lr_schedule: Factor of the learning rates by step; by default 1 for 40 % of the steps, then a cosine to 0.02. A
            function of the step, ``lambda step: 0.999**step``. Or a scheduler of torch, which is stepped after each
            step of the optimiser, ``ReduceLROnPlateau`` with the loss: a function of the optimiser,
            ``lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1000)``, a class or
            ``functools.partial`` of one, or a scheduler of the optimiser that ``optimizer`` returns.
        num_particles: Posterior samples per step, drawn and evaluated in one vectorised call. A model other than a
            :class:`~bayeshnet.BayesianModel` is tried first: if it fails when vectorised, or gives other densities than
            draw by draw, a warning says so and particles are evaluated in turn.
        loss: Another Pyro ELBO, for a model that cannot be vectorised or another objective; excludes ``num_particles``.
        optimizer: Makes an optimiser of parameter groups, ``lambda groups: torch.optim.SGD(groups, lr=0.1)``.
        clip_norm: Bound on the norm of the gradient, of model and guide together; ``math.inf`` for none. By default
            the ``clip_norm`` of the guide, if it has one, as an :class:`~bayeshnet.AutoHypernet` has whose
            hypernetwork has as many noise inputs as latents, which is where it folds most easily.
        stop: Ends the fit early; :class:`~bayeshnet.infer.FlatElbo` does when the ELBO no longer rises. The learning
            rate is then constant by default, since a falling one flattens everything.
        callbacks: Called as ``callback(step, history)`` after each step; True ends the fit.
        progress: Show a progress bar.

    Returns:
        The history of losses.

    Raises:
        NonFiniteLossError: If the loss or a gradient becomes NaN or infinite; the message names the site and the step,
            and the parameters are those before it.
        UsageError: If there is nothing to optimise, another thread is in a fit, parameters appear that a scheduler does
            not know, or in ``torch.inference_mode``.
        ArgumentError: If a number is out of range, the data are empty, or the guide is that of another model.
        ArgumentTypeError: If an argument is of another type.

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
    check_pair(model, guide)
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
    if loss is not None:
        check_loss(loss)
    if loss is not None and num_particles != 16:
        raise ArgumentError(
            "loss, num_particles: both were given; set num_particles in the ELBO that is passed as loss."
        )
    elbo: Any = loss or Trace_ELBO(
        num_particles=num_particles, vectorize_particles=num_particles > 1, max_plate_nesting=plate_nesting(model)
    )
    if lr_schedule is None:
        lr_schedule = (lambda _: 1.0) if stop is not None else flat_then_cosine(steps)
    if torch.is_inference_mode_enabled():
        raise UsageError("fit: is called in torch.inference_mode, which takes no gradients; leave it for the fit.")
    batches = Batches(data, model)
    history = History()
    # Gradients are taken even if the caller has switched them off, as for evaluation.
    with one_thread("fit"), torch.enable_grad(), contextlib.ExitStack() as unfinished:
        batches.check_known_size(steps=steps, stacklevel=2)
        trainer = Trainer(model, guide, elbo, lr, lr_schedule, optimizer, clip_norm)
        bar = tqdm(total=steps, disable=not progress, desc="fit", unit="step")
        began = time.perf_counter()
        unfinished.callback(_hook(guide, "cancel_fit"))
        try:
            with one_thread("fit"):  # once more, for Pyro's stacks: an interrupt ends here
                show_data(model, data)
                _hook(guide, "begin_fit")(model, data)
                _train(trainer, batches, history, steps, bar, stop, callbacks, check_elbo=loss is None)
        except KeyboardInterrupt:
            history.stopped = "interrupted"
        finally:
            history.seconds = time.perf_counter() - began
            bar.close()
            trainer.close()
        if len(history) == 0:  # interrupted before the first step
            return history
        trainer.finish(len(history))
        batches.check_counted_size(whole=False, stacklevel=2)
        if stop is not None and history.stopped == "steps":
            warnings.warn(
                f"The fit used all {steps} steps before its stopping rule was met; the ELBO may still rise. Raise "
                "steps, or call fit again to go on.",
                ConvergenceWarning,
                stacklevel=2,
            )
        try:
            with one_thread("fit"):
                _hook(guide, "end_fit")(model, data)
            unfinished.pop_all()
        except KeyboardInterrupt:  # of what comes after the steps; they are done, and their history is worth keeping
            history.stopped = "interrupted"
    return history


def _train(
    trainer: Trainer,
    batches: Batches,
    history: History,
    steps: int,
    bar: Any,
    stop: Callable[[list[float]], bool] | None,
    callbacks: Sequence[Callback],
    *,
    check_elbo: bool,
) -> None:
    """Make the steps, and note them in the history."""
    model, stream = trainer.model, iter(batches)
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # Pyro's warning of a NaN loss; an error that says more follows.
        warnings.filterwarnings("ignore", message="Encountered NaN", category=UserWarning)
        # The model goes by the sizes of batches alone; the data have been compared with dataset_size.
        warnings.filterwarnings("ignore", message="A batch of", category=DatasetSizeWarning)
        for step in range(steps):
            args, kwargs = next(stream)
            require_targets(model, args, kwargs, "data")
            if step == 0 and check_elbo and not vectorises(model):
                trainer.elbo = checked_elbo(trainer.elbo, model, trainer.guide, args, kwargs)
            try:
                value, rate = trainer.step(step, args, kwargs)
            except BayeshnetError:
                raise
            except TypeError as error:
                if (wrong := call_error(model, args, kwargs, "data")) is None:
                    raise
                raise wrong from error
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
                return
            if stop is not None and stop(history.losses):
                history.stopped = "flat"
                return


def _hook(guide: Any, name: str) -> Callable[..., None]:
    """A hook of the guide, or a function that does nothing if it has none of this name."""
    return getattr(guide, name, _nothing)


def _nothing(*_: Any) -> None:
    """What a guide without a hook does."""
