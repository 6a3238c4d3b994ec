"""A model and its guide from a file and a network alone."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from bayeshnet.checks import kind_of
from bayeshnet.configuration import NotRebuiltError, rebuilt
from bayeshnet.configuration.configured import known_class
from bayeshnet.errors import ArgumentError, ArgumentTypeError, BayeshnetWarning, CheckpointError
from bayeshnet.families.base import Family
from bayeshnet.families.hypernet import HnetOrBuilder
from bayeshnet.guides.base import Guide
from bayeshnet.models.bayesian_model import BayesianModel, PriorLike
from bayeshnet.models.likelihoods import Likelihood
from bayeshnet.models.output import Picked
from bayeshnet.training._contents import Contents, Entry, read_contents
from bayeshnet.training._sizes import check_sizes
from bayeshnet.training._stand_in import stand_in
from bayeshnet.training.checkpoint import check_and_fill, stem

__all__ = ["Posterior", "load_posterior"]


class Posterior(NamedTuple):
    """A model and the guide that is its posterior.

    Attributes:
        model: The model.
        guide: The guide.

    Example:
        >>> Posterior._fields
        ('model', 'guide')
    """

    model: BayesianModel
    guide: Guide


def load_posterior(
    path: str | os.PathLike[str],
    net: nn.Module,
    *,
    prior: PriorLike | None = None,
    likelihood: Likelihood | None = None,
    output: Picked = None,
    family: Family | str | None = None,
    hnet: HnetOrBuilder | None = None,
) -> Posterior:
    """Build a model and its guide from a file of :func:`~bayeshnet.save` and the network, without data.

    They predict what the saved ones did, to the bit for the same seed. What is made is of classes of this package and
    distributions of Pyro, by what the file says of the arguments of their constructors; no other code runs because of
    what is in a file. What is the user's own has to be passed, and the error says which it is.

    Args:
        path: As given to :func:`~bayeshnet.save`; a file with one guide.
        net: A network like the one that the model was built from; its weights do not matter. It is left as it is.
        prior: The prior, if it is a function or a class of your own.
        likelihood: The likelihood, if it is a class of your own or made of a function.
        output: The ``output`` of the model, if it is a function.
        family: The family of an :class:`~bayeshnet.AutoHypernet`, if it is of your own or has a hypernetwork of yours.
        hnet: The hypernetwork of an :class:`~bayeshnet.AutoHypernetNormal` or :class:`~bayeshnet.AutoHypernetDelta`,
            or the function that makes it, if one was given; of an :class:`~bayeshnet.AutoHypernet` short for
            ``family=families.Hypernet(hnet)``.

    Returns:
        The model and the guide, on the device of the network.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged, holds no guide of this package or several, or is of a version that did
            not save what is needed; if something has to be passed; or if network, prior, likelihood or family are not
            what was saved: the message names what differs.
        ArgumentTypeError: If ``net`` is no ``nn.Module``.

    Example:
        >>> import tempfile
        >>> from bayeshnet import AutoHypernet, likelihoods, predict, save
        >>> folder = tempfile.TemporaryDirectory()
        >>> x, y = torch.randn(20, 2), torch.randn(20)
        >>> model = BayesianModel(nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.5))
        >>> file = save(f"{folder.name}/run", model=model, guide=AutoHypernet(model, example=(x, y)))
        >>> model, guide = load_posterior(f"{folder.name}/run", nn.Linear(2, 1))
        >>> predict(model, guide, x, num_samples=10).mean.shape[0]
        20
        >>> folder.cleanup()
    """
    if not isinstance(net, nn.Module):
        raise ArgumentTypeError(f"net: is {kind_of(net)}; pass an nn.Module.")
    if family is not None and hnet is not None:
        raise ArgumentError("family, hnet: both were given; pass one of them.")
    contents = read_contents(stem(path))
    name, entry = _guide_of(contents)
    of_model = contents.entries.get(entry.model or "")
    if of_model is None or entry.example is None:
        raise CheckpointError(
            f"{name}: was not built for a BayesianModel itself, so that it cannot be built from the file; build it, "
            "and use load."
        )
    model_class = _class_of(of_model, "model", BayesianModel)
    options = _options(
        of_model, "the model", {"prior": prior, "likelihood": likelihood, "output": output}, skip=("net",)
    )
    model = _built(lambda: model_class(net, **options), "model")
    _take_dtypes(model, of_model)
    check_and_fill({"model": (of_model, model)})
    like = next(net.parameters()).detach()
    guide_class = _class_of(entry, "guide", Guide)
    given = {"hnet": hnet} if family is None else {"family": family}
    skip = ("family",) if hnet is not None and "family" in _arguments(entry) else ()
    options = _options(entry, "the guide", given, skip=skip)
    options = {key: value for key, value in options.items() if value is not None or key in ("conditional",)}
    # What is said of data in other units than a prior is made for does not apply to a stand-in.
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[like.device] if like.is_cuda else []):
        warnings.simplefilter("ignore", BayeshnetWarning)
        example = _built(lambda: stand_in(model, entry.example or {}, like), "example")
        guide = _built(lambda: guide_class(model, example=example, **options), "guide")
    _take_dtypes(guide, entry)
    check_and_fill({"guide": (entry, guide)})
    return Posterior(model, guide)


def _take_dtypes(module: nn.Module, entry: Entry) -> None:
    """Convert what was saved in another dtype than it has when it is built, after ``module.double()`` for instance."""
    for key, tensor in (*module.named_parameters(), *module.named_buffers()):
        saved = entry.tensors.get(key)
        if saved is not None and saved.is_floating_point() and tensor.is_floating_point():
            tensor.data = tensor.data.to(saved.dtype)


def _guide_of(contents: Contents) -> tuple[str, Entry]:
    """The only guide in a file."""
    kinds = {name: _said(entry, "of") for name, entry in contents.entries.items()}
    guides = [name for name, kind in kinds.items() if kind == "guide"]
    if len(guides) != 1:
        classes = {name: entry.class_name for name, entry in contents.entries.items()}
        old = all(entry.configuration is None for entry in contents.entries.values())
        why = (
            "an earlier version has written it, which did not save how its objects were built"
            if old
            else f"it holds {'no guide' if not guides else 'several guides'} of this package: {classes}"
        )
        raise CheckpointError(f"path: {why}. Build the objects as before and use load, then save them again.")
    return guides[0], contents.entries[guides[0]]


def _said(entry: Entry, key: str) -> Any:
    return entry.configuration.get(key) if isinstance(entry.configuration, dict) else None


def _arguments(entry: Entry) -> Mapping[str, Any]:
    arguments = _said(entry, "arguments")
    if not isinstance(arguments, dict) or not all(isinstance(key, str) for key in arguments):
        raise CheckpointError("path: the description in the file is damaged; save it again.")
    return arguments


def _class_of(entry: Entry, kind: str, base: type) -> Any:
    cls = known_class(kind, str(_said(entry, "class")))
    if cls is None or "own" in entry.configuration or not issubclass(cls, base) or entry.class_name != cls.__name__:
        raise CheckpointError(
            f"{kind}: is of the class {entry.class_name[:60]}, which is not one of this package; build it, and use "
            "load."
        )
    return cls


def _options(entry: Entry, what: str, given: Mapping[str, Any], *, skip: tuple[str, ...]) -> dict[str, Any]:
    """The arguments of a constructor: those that were given, the others from the file."""
    made: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    total = sum(tensor.numel() for tensor in entry.tensors.values())
    for key, description in _arguments(entry).items():
        if key in made or key in skip:
            continue
        if what == "the guide":
            check_sizes(description, total, key)
        try:
            made[key] = rebuilt(description)
        except NotRebuiltError as error:
            raise CheckpointError(
                f"{key}: that of {what} cannot be made from the file: {error.reason}; pass it, load_posterior(path, "
                f"net, {key}=...)."
            ) from error
    return made


def _built(make: Any, what: str) -> Any:
    try:
        return make()
    except CheckpointError:
        raise
    except Exception as error:  # a file may say anything
        raise CheckpointError(
            f"{what}: cannot be built from what the file says and this network ({str(error) or type(error).__name__})."
        ) from error
