"""Stochastic variational inference, a thin loop over plain Pyro."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from pyro.infer import Trace_ELBO
from pyro.infer.elbo import ELBO
from tqdm.auto import tqdm

from bayeshnet.deprecation import stacklevel_of_user
from bayeshnet.errors import ArgumentError, ConvergenceWarning, UsageError
from bayeshnet.models.capabilities import plate_nesting
from bayeshnet.sites.one_thread import one_thread
from bayeshnet.sites.shown_data import show_data
from bayeshnet.training._batches import Batches
from bayeshnet.training._checks import check_loss, check_options, check_pair
from bayeshnet.training._loop import Loop
from bayeshnet.training._minibatches import batched, given_data, number_of_steps
from bayeshnet.training._resume import FitFile, checked_file
from bayeshnet.training._same_fit import describe_fit
from bayeshnet.training._schedule import Schedule, flat_then_cosine
from bayeshnet.training._trainer import Trainer
from bayeshnet.training.history import History
from bayeshnet.training.stopping import EarlyStopping, FlatElbo
from bayeshnet.training.validation import Validation

__all__ = ["fit"]

Callback: TypeAlias = Callable[[int, History], "bool | None"]

_LOOK_EVERY = 100  # steps between looks at held-out rows, where an epoch is not what is counted


def fit(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Any,
    steps: int | None = None,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float = 0.01,
    lr_schedule: Schedule | None = None,
    num_particles: int | None = None,
    loss: ELBO | None = None,
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None = None,
    clip_norm: float | None = None,
    stop: FlatElbo | EarlyStopping | Callable[[list[float]], bool] | None = None,
    validation: Any = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    every: int | None = None,
    progress: bool = True,
) -> History:
    """Fit a guide to a model by stochastic variational inference.

    One step is one call of Pyro's ``loss_and_grads`` and one of a torch optimiser over all parameters, those of the
    modules and those of ``pyro.param``. Nothing is kept in the objects given but their parameters' new values, so a
    second call goes on from there, as does any other loop over Pyro's ``SVI``. Every submodule is trained in the mode
    it is in: a network given in ``eval()``, or a batch norm in it, stays so.

    Whatever else a guide needs is done by its hooks: ``begin_fit(model, data)`` before the first step,
    ``end_fit(model, data)`` after the last, and ``cancel_fit()`` instead where the fit fails before its end; before all
    of them ``expect_batch(rows)`` where the rows of a step are known. A guide may also have ``param_groups(lr)``,
    ``clip_norm``, ``default_particles`` and ``require_memory(num_particles)``. All are optional, and a loop of your own
    may call the same; see :meth:`AutoHypernet.begin_fit`.

    Loss and gradients are checked before each update, so that an error leaves parameters that are finite. Ctrl-C ends
    the fit, and the history so far is returned. Pyro keeps its effect handlers in one stack for all
    threads: while a thread is in ``fit``, others cannot call it, nor ``predict``; run two fits in two processes.

    With ``checkpoint=path`` the fit is written to a file while it runs: what was learned, the optimiser, schedule,
    random states, place in the data and history. The same call goes on from that file, if it is there, and ends with
    the numbers of a fit that was never interrupted (on the CPU to the bit, see the page on resuming); of a fit that has
    ended it gives the end. The file of another model, guide, data set or other arguments is refused.

    Args:
        model: A Pyro model.
        guide: Its guide: one of this package, one of Pyro's, or any other.
        data: The arguments of the model at each step: a tuple ``(x, y)``, a dict or one tensor; or an iterable of such
            batches, a ``DataLoader`` for instance, which is repeated as often as needed. A warning says so where the
            ``dataset_size`` of a :class:`~bayeshnet.BayesianModel` is missing or not that of the data.
        steps: Number of steps; by default 3,000, or those of 20 passes through the data if these are more.
        epochs: Number of passes through the data, instead of ``steps``.
        batch_size: Rows of a batch, for the data of a :class:`~bayeshnet.BayesianModel` that are given as a whole: each
            pass takes them in a new random order. By default all rows up to 10,000; of more 1,000, if the model's
            ``dataset_size`` is their number, and all of them otherwise. The history says what was used.
        lr: Learning rate of Adam. A guide with ``param_groups(lr)`` divides it among its parameters; the
            ``decay`` of a group is the strength of decoupled weight decay, as in AdamW, with any optimiser (a guide
            that has ``begin_fit`` sees to that itself, as those of this package do).
        lr_schedule: Factor of the learning rates by step; by default 1 for 40 % of the steps, then a cosine to 0.02. A
            function of the step, ``lambda step: 0.999**step``. Or a scheduler of torch, which is stepped after each
            step of the optimiser, ``ReduceLROnPlateau`` with the loss: a function of the optimiser,
            ``lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1000)``, a class or
            ``functools.partial`` of one, or a scheduler of the optimiser that ``optimizer`` returns.
        num_particles: Posterior samples per step, drawn and evaluated in one vectorised call; by default 16, and for
            guides of this package with more than 100,000 latents fewer, down to 2: their ``default_particles``. The
            history says how many there were. A model other than a
            :class:`~bayeshnet.BayesianModel` is tried first: if it fails when vectorised, or gives other densities than
            draw by draw, a warning says so and particles are evaluated in turn.
        loss: Another Pyro ELBO, for a model that cannot be vectorised or another objective; excludes ``num_particles``.
        optimizer: Makes an optimiser of parameter groups, ``lambda groups: torch.optim.SGD(groups, lr=0.1)``.
        clip_norm: Bound on the norm of the gradient, of model and guide together; ``math.inf`` for none. By default
            the ``clip_norm`` of the guide, if it has one, as an :class:`~bayeshnet.AutoHypernet` has whose
            hypernetwork has as many noise inputs as latents, which is where it folds most easily.
        stop: Ends the fit early; :class:`~bayeshnet.infer.FlatElbo` does when the ELBO no longer rises. The learning
            rate is then constant by default, since a falling one flattens everything.
            :class:`~bayeshnet.EarlyStopping` does when held-out rows are predicted no better.
        validation: Held-out rows, in the forms of ``data``, or a :class:`~bayeshnet.Validation` of them: how well they
            are predicted is noted in ``history.validation``, every epoch or every 100 steps.
        callbacks: Called as ``callback(step, history)`` after each step; True ends the fit. See
            :class:`~bayeshnet.training.CsvLogger` and :class:`~bayeshnet.training.TensorBoardLogger`.
        checkpoint: File to write to and to go on from.
        every: Number of steps from one write to the next, 500 by default.
        progress: Show a progress bar.

    Returns:
        The history of losses, with the parts of likelihood and divergence where ``loss`` is a ``Trace_ELBO``,
        ``TraceGraph_ELBO`` or ``TraceMeanField_ELBO`` of Pyro.

    Raises:
        CheckpointError: If the file is damaged, or that of another fit.
        OSError: If the file cannot be written.
        NonFiniteLossError: If the loss or a gradient becomes NaN or infinite; the message names the site and the step,
            and the parameters are those before it.
        UsageError: If there is nothing to optimise, another thread is in a fit, parameters appear that a scheduler does
            not know, or in ``torch.inference_mode``.
        ArgumentError: If a number is out of range, the data are empty, the guide is that of another model, or a step
            cannot fit into memory.
        ArgumentTypeError: If an argument is of another type.

    Example:
        >>> import pyro, pyro.distributions as dist
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
    chosen = getattr(guide, "default_particles", 16) if num_particles is None else num_particles
    check_options(
        steps=steps,
        epochs=epochs,
        num_particles=chosen,
        lr=lr,
        clip_norm=clip_norm,
        callbacks=callbacks,
        optimizer=optimizer,
        lr_schedule=lr_schedule,
        stop=stop,
        validation=validation,
    )
    if loss is not None:
        check_loss(loss)
    if loss is not None and num_particles is not None:
        raise ArgumentError(
            "loss, num_particles: both were given; set num_particles in the ELBO that is passed as loss."
        )
    elbo: Any = loss or Trace_ELBO(
        num_particles=chosen, vectorize_particles=chosen > 1, max_plate_nesting=plate_nesting(model)
    )
    if torch.is_inference_mode_enabled():
        raise UsageError("fit: is called in torch.inference_mode, which takes no gradients; leave it for the fit.")
    data = given_data(data, model)
    used = batched(data, model, batch_size)
    batches = Batches(used, model)
    num_rows, per_batch = batches.rows()
    if per_batch is not None:
        _hook(guide, "expect_batch")(per_batch)
    in_a_step = getattr(elbo, "num_particles", None)
    if in_a_step is not None and getattr(elbo, "vectorize_particles", False):
        _hook(guide, "require_memory")(in_a_step)
    total = number_of_steps(steps, epochs, batches.per_pass)
    looks = None
    if validation is not None:
        rows = validation if isinstance(validation, Validation) else Validation(validation)
        rows = replace(rows, data=given_data(rows.data, model))
        looks = rows, rows.every or (_LOOK_EVERY if epochs is None else total // epochs)
    file = None
    if (written := checked_file(checkpoint, every)) is not None:
        options = {"lr": lr, "lr_schedule": lr_schedule, "optimizer": optimizer, "clip_norm": clip_norm, "stop": stop}
        options |= {"steps": total, "loss": type(elbo), "num_particles": getattr(elbo, "num_particles", None)}
        file = FitFile(*written, describe_fit(model, guide, used, looks, options))
    if lr_schedule is None:
        lr_schedule = (lambda _: 1.0) if stop is not None else flat_then_cosine(total)
    # Gradients are taken even if the caller has switched them off, as for evaluation.
    with one_thread("fit"), torch.enable_grad():
        batches.check_known_size(steps=total)
        if looks is not None:
            looks[0].check(model)
        trainer = Trainer(model, guide, elbo, lr, lr_schedule, optimizer, clip_norm)
        history = History(rows=num_rows, batch_size=per_batch, num_particles=in_a_step)
        loop = Loop(
            trainer,
            batches,
            history,
            total,
            stop=stop,
            callbacks=callbacks,
            validation=looks,
            file=file,
            check_elbo=loss is None,
        )
        _run(loop, data, progress)
    return history


def _run(loop: Loop, data: Any, progress: bool) -> None:
    """Make the steps that are not done yet, between the hooks of the guide."""
    trainer, history, file = loop.trainer, loop.history, loop.file
    model, guide = trainer.model, trainer.guide
    saved = file if file is not None and file.read() else None
    if saved is not None and saved.finished:
        saved.return_to_end(loop, data)
        return
    with contextlib.ExitStack() as unfinished:
        bar = tqdm(total=loop.steps, disable=not progress, desc="fit", unit="step")
        began = time.perf_counter()
        unfinished.callback(_hook(guide, "cancel_fit"))
        try:
            with one_thread("fit"):  # once more, for Pyro's stacks: an interrupt ends here
                if saved is not None:  # before the hooks, which may go by what was learned; they may also change it
                    saved.fill(model, guide, data, strict=False)
                show_data(model, data)
                _hook(guide, "begin_fit")(model, data)
                if saved is not None:
                    saved.fill(model, guide, data)
                    saved.go_on(loop)
                    began -= history.seconds
                    bar.update(len(history))
                loop.run(bar)
        except KeyboardInterrupt:
            history.stopped = "interrupted"
        finally:
            history.seconds = time.perf_counter() - began
            bar.close()
            trainer.close()
        if len(history) == 0:  # interrupted before the first step
            return
        loop.restore_best()
        trainer.finish(len(history))
        loop.batches.check_counted_size(whole=False)
        if loop.stop is not None and history.stopped == "steps":
            warnings.warn(
                f"The fit used all {loop.steps} steps before its stopping rule was met; "
                f"{'the ELBO may still rise' if history.best_step is None else 'its best state was restored'}. Raise "
                "steps, or call fit again to go on.",
                ConvergenceWarning,
                stacklevel=stacklevel_of_user(),
            )
        try:
            with one_thread("fit"):
                _hook(guide, "end_fit")(model, data)
                if file is not None and history.stopped != "interrupted":
                    file.write(loop, finished=True)
            unfinished.pop_all()
        except KeyboardInterrupt:  # of what comes after the steps; they are done, and their history is worth keeping
            history.stopped = "interrupted"


def _hook(guide: Any, name: str) -> Callable[..., None]:
    """A hook of the guide, or a function that does nothing if it has none of this name."""
    return getattr(guide, name, _nothing)


def _nothing(*_: Any) -> None:
    """What a guide without a hook does."""
