"""The file of a fit that can be gone on with after its process has died."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from bayeshnet import configuration
from bayeshnet.checks import kind_of, require_count
from bayeshnet.errors import ArgumentError, ArgumentTypeError, CheckpointError, UsageError
from bayeshnet.models.forms import is_single
from bayeshnet.sites.arguments import call_arguments
from bayeshnet.training._batches import Batches, Position
from bayeshnet.training._learned_state import learned_tensors, write_back
from bayeshnet.training._plain import packed, unpacked
from bayeshnet.training._random import RandomStates, own_stream
from bayeshnet.training._same_fit import require_same
from bayeshnet.training._trainer import Trainer
from bayeshnet.training.files import read_file, write_file
from bayeshnet.training.history import History

if TYPE_CHECKING:
    from bayeshnet.training._loop import Loop

__all__ = ["FitFile", "checked_file"]

_LOGGER = logging.getLogger(__name__)
_KIND = "bayeshnet.fit"
_FORMAT = 1
_EVERY = 500
_CONFIGURATION = "configuration/"
# Options of a parameter group that schedules change, and those that some of torch's schedulers cycle.
_MOVED = {"params", "lr", "initial_lr", "full_lr"}
_CYCLED = {"momentum", "betas", "max_lr", "min_lr", "max_momentum", "base_momentum", "_momentum_cached"}
_SERIES = ("losses", "lrs", "log_likelihood", "kl", "validation")


def checked_file(path: Any, every: Any) -> tuple[Path, int] | None:
    """Return the file of a fit and the steps between writes, if it can be written as far as that can be seen before.

    Args:
        path: As given; None for no file.
        every: As given; None for the default.

    Raises:
        ArgumentTypeError: If one of them is of another type.
        ArgumentError: If the path names a folder, or there are steps without a path.
        OSError: If the folder is not there or read-only.

    Example:
        >>> checked_file("run", None)
        (PosixPath('run'), 500)
    """
    if every is not None:
        require_count("every", every, advice=", or None")
    if path is None:
        if every is not None:
            raise ArgumentError(f"every: is {every}, and there is no file; pass checkpoint, too.")
        return None
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise ArgumentTypeError(f"checkpoint: is {kind_of(path)}; pass a file name, such as 'fit.safetensors'.")
    text, found = os.fspath(path), Path(path)
    folder = text.endswith(tuple(sep for sep in (os.sep, os.altsep) if sep))
    if folder or "\0" in text or found.name in ("", ".", "..") or found.is_dir():
        raise ArgumentError(f"checkpoint: is {text!r}, which names no file; pass a file name.")
    if not found.parent.is_dir():
        raise FileNotFoundError(f"checkpoint: the folder {str(found.parent)!r} is not there; make it first.")
    if not os.access(found.parent, os.W_OK):
        raise PermissionError(f"checkpoint: the folder {str(found.parent)!r} is read-only; choose another one.")
    return found, _EVERY if every is None else every


class FitFile:
    """The state of a fit in a file: what was learned, the optimiser, random states, the place in the data, the history.

    Args:
        path: The file.
        every: Number of steps from one write to the next.
        fit: What the fit is, in plain data: the file is refused for another.

    Example:
        >>> file = FitFile(Path("nowhere/fit"), 100, {"steps": 10})
        >>> file.read()
        False
    """

    def __init__(self, path: Path, every: int, fit: Mapping[str, Any]) -> None:
        self.path, self.every, self.fit = path, every, fit
        self._tensors: dict[str, Tensor] = {}
        self._state: dict[str, Any] = {}

    # ------------------------------------------------------------------ writing

    def check(self, trainer: Trainer) -> None:
        """Raise unless all that is optimised can be found again by name.

        Args:
            trainer: The trainer after a step.

        Raises:
            UsageError: If a parameter is in neither model, guide nor Pyro's store.
        """
        known = {id(tensor) for tensor in learned_tensors(trainer.model, trainer.guide).values()}
        lost = [tuple(param.shape) for key, param in trainer.params.items() if key not in known]
        if lost:
            raise UsageError(
                f"checkpoint: {len(lost)} parameters, of shapes {lost[:4]}, are in neither model, guide nor Pyro's "
                "parameter store, and could not be found again. Pass the guide and the model themselves and not "
                "functions that call them, or leave out checkpoint."
            )

    def write(self, loop: Loop, *, finished: bool) -> None:
        """Write the state after a step, in place of that before.

        Args:
            loop: The loop, between two steps.
            finished: Whether the fit has ended, its last hook included.
        """
        trainer, batches, history = loop.trainer, loop.batches, loop.history
        optimizer = cast("torch.optim.Optimizer", trainer.optimizer)
        learned = learned_tensors(trainer.model, trainer.guide, trainer.params)
        names = {id(tensor): name for name, tensor in learned.items()}
        tensors = {f"learned.{name}": tensor.detach() for name, tensor in learned.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in (loop.best_state or {}).items()}
        for name in _SERIES:
            tensors[f"history.{name}"] = torch.tensor(getattr(history, name), dtype=torch.double)
        position, start = batches.position()
        state = {
            "kind": _KIND,
            "format": _FORMAT,
            "fit": configuration.packed(dict(self.fit), tensors, _CONFIGURATION),
            "finished": finished,
            "elbo": packed(_settings(trainer.elbo), "elbo", tensors),
            "waves": [[names[id(param)] for param in wave] for wave in trainer.waves],
            "optimizer": packed(optimizer.state_dict(), "optimizer", tensors),
            "scheduler": packed(trainer.rates.state(), "scheduler", tensors),
            "position": asdict(position),
            "random": {
                "now": _packed_states(batches.random_states(), "random.now", tensors),
                "pass": _packed_states(start, "random.pass", tensors),
                "validation": _packed_states(loop.validation_start, "random.validation", tensors),
            },
            "history": packed(
                {f.name: getattr(history, f.name) for f in fields(history) if f.name not in _SERIES}, "history", tensors
            ),
        }
        # Several names may be one piece of memory, which the file has once for each.
        write_file(self.path, tensors, state)

    # ------------------------------------------------------------------ reading

    def read(self) -> bool:
        """Read the file, if it is there, and check that it belongs to this fit.

        Returns:
            Whether it is there.

        Raises:
            CheckpointError: If it is damaged, no file of a fit, or that of another.
        """
        try:
            self._tensors, self._state = read_file(self.path)
        except FileNotFoundError:
            return False
        if self._state.get("kind") != _KIND or self._state.get("format") != _FORMAT:
            raise CheckpointError(
                f"checkpoint: {str(self.path)!r} is no file of a fit that this version can go on with; pass another "
                "file name. (What save has written is read by load.)"
            )
        require_same(configuration.unpacked(self._state["fit"], self._tensors, _CONFIGURATION), self.fit, self.path)
        return True

    @property
    def finished(self) -> bool:
        """Whether the file is that of a fit that has ended."""
        return bool(self._state["finished"])

    def fill(self, model: Any, guide: Any, data: Any, *, strict: bool = True) -> None:
        """Write what was learned into model and guide.

        Args:
            model: The model.
            guide: The guide.
            data: The data, for a guide that makes its parameters when it is first called.
            strict: Whether buffers of another shape are an error; they may be made by a hook that is still to come.

        Raises:
            CheckpointError: If tensors are missing, or of other shapes.
        """
        values = self._group("learned")
        tensors = learned_tensors(model, guide)
        unset = isinstance(guide, AutoGuide) and guide.prototype_trace is None
        if unset or values.keys() - tensors.keys():
            _call_once(model, guide, data)
            tensors = learned_tensors(model, guide)
        known = {name: tensor for name, tensor in tensors.items() if name in values or not name.startswith("store.")}
        missing, surplus = sorted(values.keys() - known.keys()), sorted(known.keys() - values.keys())
        shapes = [name for name in values.keys() & known.keys() if values[name].shape != known[name].shape]
        if not strict:
            missing, surplus, shapes = [], [], [name for name in shapes if known[name].requires_grad]
        if missing or surplus or shapes:
            raise CheckpointError(
                f"checkpoint: {str(self.path)!r} is of another model or guide: of what the file has {missing[:4]} is "
                f"missing, {surplus[:4]} is not in the file, and {sorted(shapes)[:4]} has another shape; build both "
                "with the arguments of that fit."
            )
        write_back({name: tensor for name, tensor in known.items() if name not in shapes}, values)

    def go_on(self, loop: Loop) -> None:
        """Give optimiser, schedule, data, random states and history their state; what was learned is in place already.

        Args:
            loop: The loop, before its first step.

        Raises:
            CheckpointError: If one of them is another than in the file.
        """
        trainer, state = loop.trainer, self._state
        self.restore_history(loop.history)
        steps = len(loop.history)
        self._restore_optimizer(trainer, steps)
        vars(trainer.elbo).update(unpacked(state["elbo"], self._tensors))
        loop.best_state = self._group("best") or None
        loop.validation_start = self._states("validation") or loop.validation_start
        loop.batches.go_to(Position(**state["position"]), self._states("pass"))
        self.restore_random_states(loop.batches)
        _LOGGER.info("checkpoint: %s has %d steps, the fit goes on from there.", self.path, steps)

    def return_to_end(self, loop: Loop, data: Any) -> None:
        """Bring all to where the fit in the file has ended."""
        self.fill(loop.trainer.model, loop.trainer.guide, data)
        self.restore_history(loop.history)
        self.restore_random_states(loop.batches)
        _LOGGER.info("checkpoint: %s is that of a fit that has ended, after %d steps.", self.path, len(loop.history))

    def restore_history(self, history: History) -> None:
        """Fill the history, and note that it was read."""
        for name, value in unpacked(self._state["history"], self._tensors).items():
            setattr(history, name, value)
        for name in _SERIES:
            setattr(history, name, self._tensors[f"history.{name}"].tolist())
        history.resumed_from = len(history)

    def restore_random_states(self, batches: Batches) -> None:
        """Set all random states to those when the file was written."""
        states = self._states("now")
        if states is not None:
            batches.restore_random_states(states)

    # ------------------------------------------------------------------ parts

    def _restore_optimizer(self, trainer: Trainer, steps: int) -> None:
        named = learned_tensors(trainer.model, trainer.guide)
        for wave in self._state["waves"]:
            lost = [name for name in wave if name not in named]
            if lost:
                raise CheckpointError(
                    f"checkpoint: {str(self.path)!r} has an optimiser of parameters that model and guide lack, "
                    f"{lost[:4]}; build both with the arguments of that fit."
                )
            trainer.take_in([named[name] for name in wave], steps)
        optimizer = cast("torch.optim.Optimizer", trainer.optimizer)
        trainer.rates.begin(optimizer, steps)
        saved = unpacked(self._state["optimizer"], self._tensors)
        sizes = [[len(group["params"]) for group in part] for part in (optimizer.param_groups, saved["param_groups"])]
        options = [[sorted(group) for group in part] for part in (optimizer.param_groups, saved["param_groups"])]
        moving = _MOVED if self._state["scheduler"] is None else _MOVED | _CYCLED
        fixed = [[_fixed(group, moving) for group in part] for part in (optimizer.param_groups, saved["param_groups"])]
        if sizes[0] != sizes[1] or not _within(*options) or not _agree(*fixed):
            raise CheckpointError(
                f"checkpoint: {str(self.path)!r} has another optimiser, of {sizes[1]} parameters in its groups (here "
                f"{sizes[0]}) with the options {fixed[1][0]} (here {fixed[0][0]}); pass that of the fit."
            )
        optimizer.load_state_dict(saved)
        trainer.rates.load(unpacked(self._state["scheduler"], self._tensors))

    def _group(self, prefix: str) -> dict[str, Tensor]:
        start = f"{prefix}."
        return {name.removeprefix(start): value for name, value in self._tensors.items() if name.startswith(start)}

    def _states(self, name: str) -> RandomStates | None:
        found = unpacked(self._state["random"][name], self._tensors)
        return None if found is None else RandomStates(**found)


def _packed_states(states: RandomStates | None, name: str, tensors: dict[str, Tensor]) -> Any:
    return packed(None if states is None else vars(states), name, tensors)


def _settings(elbo: Any) -> dict[str, Any]:
    """What an ELBO of Pyro finds out in its first evaluation, or ``fit`` before it."""
    names = ("max_plate_nesting", "vectorize_particles")
    return {name: getattr(elbo, name) for name in names if hasattr(elbo, name)}


def _call_once(model: Any, guide: Any, data: Any) -> None:
    """Call a guide, and the model with its draws, so that they make the parameters that they make when called."""
    batch = data if is_single(data) else next(iter(data))
    args, kwargs = call_arguments(batch, "data", model)
    with own_stream(RandomStates.now()), torch.no_grad():
        trace = poutine.trace(guide).get_trace(*args, **kwargs)
        poutine.block(poutine.replay(model, trace=trace))(*args, **kwargs)


def _fixed(group: Mapping[str, Any], moving: set[str]) -> dict[str, Any]:
    """Those options of a parameter group that no schedule changes."""
    return {name: value for name, value in group.items() if name not in moving and not isinstance(value, Tensor)}


def _within(here: list[list[str]], there: list[list[str]]) -> bool:
    """Whether the options of each group are among those of the file, to which a schedule may have added its own."""
    return all(set(a) <= set(b) for a, b in zip(here, there, strict=True))


def _agree(here: list[dict[str, Any]], there: list[dict[str, Any]]) -> bool:
    return all(a.get(name) == b[name] for a, b in zip(here, there, strict=True) for name in b if name in a)
