"""Predictions in bounded memory: blocks of rows, and for each of them all networks, in parts if they do not fit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm.auto import tqdm

from bayeshnet.checks import require_count, require_flag, require_positive
from bayeshnet.errors import ArgumentError
from bayeshnet.evaluation._conditional import is_nominal, kind_of_noise
from bayeshnet.evaluation._predict import check_model, drawn_from, tile_rows, tiles
from bayeshnet.evaluation._rows import Rows, spanned
from bayeshnet.evaluation._seeds import base_seed, check_generator, seeded
from bayeshnet.evaluation._sources import Parts, Source, check_source, like_of
from bayeshnet.evaluation.prediction import Prediction
from bayeshnet.evaluation.summary import PredictionSummary, joined, parts_of
from bayeshnet.models.bayesian_model import BayesianModel
from bayeshnet.models.forms import num_rows, rows_of
from bayeshnet.models.prepared import with_statistics
from bayeshnet.sites.modes import evaluating
from bayeshnet.sites.one_thread import one_thread
from bayeshnet.sites.quantiles import checked_levels

__all__ = ["predict_summary"]

_LEVELS = (0.05, 0.5, 0.95)
# Shares of the memory: draws that are kept, outputs of a block, what a network computes on the way to them.
_OF_DRAWS, _OF_OUTPUTS, _OF_ACTIVATIONS = 0.3, 0.3, 0.25
# More rows than these are not evaluated faster, and what is computed of them leaves the cache.
_ROWS_AT_ONCE = 512


def predict_summary(
    model: BayesianModel,
    guide: Source,
    data: Any,
    num_samples: int = 500,
    *,
    targets: Any = False,
    levels: Sequence[float] | None = None,
    functions: bool = False,
    noise: Any = None,
    exposure: Any = None,
    batch_size: int | None = None,
    memory_gb: float = 0.5,
    parallel: bool = True,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> PredictionSummary:
    """Predict any number of rows by any number of networks, and keep a few numbers for each row.

    The same S networks are used for all rows: where their weights do not fit into memory, they are drawn again, from
    the same seeds, for each block of rows. All parts are exact functions of the S networks, as those of
    :class:`~bayeshnet.Prediction` are, and with generators of the same seed both functions give the same numbers.
    The model is in evaluation mode for the call.

    Args:
        model: The Bayesian network.
        guide: A fitted guide, draws, Pyro's ``MCMC`` or an ensemble, as for :func:`~bayeshnet.predict`.
        data: Inputs in the forms of :meth:`~bayeshnet.BayesianModel.as_inputs`; a dict with ``x`` and ``y``; or an
            iterable of batches, such as a ``DataLoader``, whose batches are inputs, ``(x, y, ...)`` or dicts, in
            whose order the rows are predicted. ``noise`` and ``exposure`` of a likelihood that needs them are taken
            from dicts, and from batches ``(x, y, weight, noise, exposure)``, as in a fit.
        num_samples: Number S of networks; draws given as ``guide`` are all used.
        targets: Observations whose log density is wanted: ``[B, ...]``, or True for those in ``data``.
        levels: Those of the quantiles, between 0 and 1; 5, 50 and 95 % by default, for labels none.
        functions: Also keep ``functions`` ``[S, B, ...]``, for which there has to be memory.
        noise: Known noise of each row ``[B]`` or ``[B, *target]``, for likelihoods with ``per_row=True``; for inputs
            that are given as a whole.
        exposure: Exposure of each row, likewise, for likelihoods with ``exposure=True``.
        batch_size: Rows that a network is evaluated on at once; by default what memory allows.
        memory_gb: Memory for draws and what is computed on the way, in GB; beside it there is what is returned.
            A single network, or a guide that draws 100 of them, may need more.
        parallel: Draw the guide's samples in vectorised calls; False for a guide that cannot be vectorised.
        generator: Where random numbers come from; the global one without. With one of the same seed the numbers are the
            same whatever ``batch_size`` and ``memory_gb``, and the global one stays as it is.
        progress: Show a progress bar.

    Returns:
        Mean, standard deviation and its parts, quantiles, class probabilities and their entropy, log densities.

    Raises:
        ArgumentTypeError: If an argument is of another type.
        ArgumentError: If there are no rows, a number is out of range, or draws, inputs or outputs are NaN.
        UsageError: If another thread is in a fit.

    Example:
        >>> from bayeshnet import AutoHypernet, likelihoods
        >>> x, y = torch.randn(8, 2), torch.randn(8)
        >>> model = BayesianModel(torch.nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.5))
        >>> guide = AutoHypernet(model, example=(x, y))
        >>> summary = predict_summary(model, guide, [(x[:5], y[:5]), (x[5:], y[5:])], 100, targets=True)
        >>> summary.mean.shape, summary.interval(0.9)[0].shape, summary.log_prob.shape
        (torch.Size([8]), torch.Size([8]), torch.Size([8]))
    """
    check_model(model)
    check_source(model, guide)
    require_count("num_samples", num_samples)
    require_positive("memory_gb", memory_gb)
    for name, flag in (("functions", functions), ("parallel", parallel), ("progress", progress)):
        require_flag(name, flag)
    if batch_size is not None:
        require_count("batch_size", batch_size, advice=", or None for what memory allows")
    check_generator(generator)
    wanted = None if levels is None else checked_levels("levels", levels)
    # What else draws numbers, such as a loader that shuffles, is kept from the global generator too.
    alone = contextlib.nullcontext() if generator is None else torch.random.fork_rng(devices=[])
    with torch.no_grad(), one_thread("predict_summary"), evaluating(model), alone:
        wants = tuple(getattr(getattr(model, "likelihood", None), "row_data", ()))
        rows = Rows(data, targets, like_of(model), model=model, wants=wants, noise=noise, exposure=exposure)
        stream = _Stream(model, guide, rows, num_samples, base_seed(generator), parallel, 1e9 * memory_gb, batch_size)
        kept: list[dict[str, Tensor]] = []
        kind = ""
        with tqdm(total=rows.total, disable=not progress, desc="predict", unit="row") as bar:
            for pred, y in stream:
                if not kept:
                    kind = kind_of_noise(pred.conditional)
                    wanted = _levels(pred, wanted)
                kept.append(parts_of(pred, wanted, y, functions=functions))
                bar.update(pred.draws.shape[1])
        shown = () if wanted is None else tuple(float(level) for level in wanted)
        return PredictionSummary(stream.num, shown, joined(kept), kind)


def _levels(pred: Prediction, wanted: Tensor | None) -> Tensor | None:
    if is_nominal(pred.conditional):
        if wanted is not None and len(wanted):
            raise ArgumentError("levels: labels have no order and so no quantiles; leave levels out, and use probs.")
        return None
    return torch.tensor(_LEVELS, dtype=torch.double) if wanted is None else wanted


class _Stream:
    """Predictions of some rows at a time, of all networks."""

    def __init__(
        self,
        model: BayesianModel,
        source: Source,
        rows: Rows,
        num_samples: int,
        seed: int,
        parallel: bool,
        memory: float,
        batch_size: int | None,
    ) -> None:
        self._model, self._rows, self._seed = model, rows, seed
        first, given = rows.first(8)
        self._parts = Parts(model, source, first, num_samples, seed, parallel, most=int(_OF_DRAWS * memory))
        self.num = self._parts.num
        self._of_likelihood = self._parts.of_likelihood()
        # Statistics of batch norm, once where draws are kept.
        self._kept = with_statistics(model, first, self._parts(0)) if self._parts.kept else None
        num, few = num_rows(first), max(num_rows(first) // 2, 1)
        item, bytes_few = self._measured(rows_of(first, slice(0, few)), spanned(given, slice(0, few)))
        work = bytes_few / few if num == few else (self._measured(first, given)[1] - bytes_few) / (num - few)
        pairs = max(int(_OF_ACTIVATIONS * memory / max(work, item)), 1)
        self._at_once = batch_size or max(min(pairs // self.num, _ROWS_AT_ONCE), min(pairs, 8))
        self._networks = max(1, pairs // self._at_once)
        tile = tile_rows(self.num)
        block = self._at_once if self._parts.kept else int(_OF_OUTPUTS * memory / (item * self.num))
        self._block = tile * max(1, block // tile)

    def _measured(self, x: Any, of_rows: Mapping[str, Tensor]) -> tuple[int, int]:
        """The bytes of a network's output for one row, and those that it writes for all rows of ``x``."""
        draws = {name: value[:1] for name, value in (self._kept or self._parts(0)).items()}
        with _Written() as written:
            f, _ = self._model.conditional(x, draws, **of_rows)
        return max(f[0, 0].nbytes, 1), written.bytes

    def __iter__(self) -> Iterator[tuple[Prediction, Tensor | None]]:
        place = self._parts.num_places
        for x, y, given in self._rows.blocks(self._block):
            f = self._outputs(x, given)
            for span in tiles(f.shape[1], self.num):
                part = f[:, span]
                conditional = self._model.conditional_of(part, self._of_likelihood, **spanned(given, span))
                with seeded(self._seed, place, self._parts.device):
                    samples = drawn_from(conditional)
                place += 1
                yield Prediction(part, samples, conditional), None if y is None else y[span]

    def _outputs(self, x: Any, of_rows: Mapping[str, Tensor]) -> Tensor:
        """Outputs of all networks at the rows of a block ``[S, B, ...]``."""
        rows, found = num_rows(x), None
        for i, (first, last) in enumerate(self._parts.spans):
            draws = self._kept or self._parts(i)
            for start in range(first, last, self._networks):
                stop = min(start + self._networks, last)
                some = {name: value[start - first : stop - first] for name, value in draws.items()}
                some = some if self._kept else with_statistics(self._model, x, some)
                for row in range(0, rows, self._at_once):
                    span = slice(row, min(row + self._at_once, rows))
                    whole = span.stop - row == rows
                    part, given = (x, of_rows) if whole else (rows_of(x, span), spanned(of_rows, span))
                    f, _ = self._model.conditional(part, some, **given)
                    if f.shape[:2] == (self.num, rows):
                        return f
                    found = f.new_empty(self.num, rows, *f.shape[2:]) if found is None else found
                    found[start:stop, span] = f
        return cast("Tensor", found)


class _Written(TorchDispatchMode):
    """Counts the bytes of what operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.bytes += sum(leaf.nbytes for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        return out
