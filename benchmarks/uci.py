"""Test log-likelihood and RMSE on regression sets with fixed splits, against MC dropout.

One hidden layer of 50 units, one configuration for all sets, observation noise inferred, nothing chosen by looking at
test rows. Inputs and targets are standardised with the training rows' statistics; both figures are in the target's
original units. The log-likelihood is that of the mixture over sampled networks and noise levels.

* ``bayeshnet``: tanh units, learned prior scales (for each input in the first layer), a Gamma(0.5, 0.005) prior on the
  noise's precision, ``AutoHypernet`` as it is by default; minibatches of 250 where there are more than 1000 rows.
* ``mc_dropout``: ReLU units; dropout rate (0.005, 0.01, 0.05 or 0.1) and noise level chosen on a fifth of the training
  rows, then trained again on all of them.

Folders have the form of ``shared/data/uci``: ``data.txt``, ``index_features.txt``, ``index_target.txt``,
``index_train_K.txt``, ``index_test_K.txt``. A set is named by the beginning of its folder's name. Without a folder, or
with ``--generated``, sets of 1600 to 10,000 rows are generated instead (``_uci_generated.py``).

Keys: ``SET/ll``, ``SET/ll_se`` (standard error over splits), ``SET/rmse``, ``SET/rmse_se`` and ``SET/seconds``
(processor time of a split) of ``bayeshnet``; those of another method as ``SET/METHOD_ll`` and so on;
``SET/METHOD_ll_gain``, by how much ``bayeshnet`` is above it, with its standard error over splits, paired.

Run: ``python benchmarks/uci.py [--data-dir DIR | --generated] [--sets NAME,...] [--splits N] [--methods NAME...]
[--seed N] [--quick] [--json FILE]``.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from _common import parser, report
from _uci_data import UciSet, read_set, resolve
from _uci_generated import GENERATED
from _uci_methods import METHODS, Outcome, Settings

OURS = "bayeshnet"
QUICK = Settings(steps=60, particles=4, draws=200, dropout_steps=200, dropout_draws=200)


def command_line() -> argparse.ArgumentParser:
    made = parser(__doc__ or "")
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    source = made.add_mutually_exclusive_group()
    source.add_argument("--data-dir", type=Path, metavar="DIR", help="where the sets' folders are")
    source.add_argument("--generated", action="store_true", help="larger sets, generated with a fixed seed (default)")
    made.add_argument("--sets", metavar="NAME,...", help="by default all that are there")
    made.add_argument("--splits", type=int, metavar="N", help="the first N splits; by default all, with --quick one")
    made.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="NAME")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="split K is trained with seed N + K")
    return made


def choose_sets(args: argparse.Namespace) -> list[UciSet]:
    """The sets asked for, under the names they were asked for by."""
    folder: Path | None = args.data_dir
    if folder is not None and not folder.is_dir():
        raise SystemExit(f"--data-dir: {folder} is no folder.")
    everything = list(GENERATED) if folder is None else sorted(path.parent.name for path in folder.glob("*/data.txt"))
    names = everything if args.sets is None else [name.strip() for name in args.sets.split(",") if name.strip()]
    if not names:
        raise SystemExit(f"--sets: no set was named, or there is none in {folder or 'what is generated'}.")
    if folder is not None:
        return [read_set(resolve(folder, name), name=name) for name in names]
    unknown = [name for name in names if name not in GENERATED]
    if unknown:
        raise SystemExit(f"--sets: {', '.join(unknown)} not known; generated are {', '.join(GENERATED)}.")
    return [GENERATED[name]() for name in names]


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean; None for a single value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def summarise(name: str, outcomes: Mapping[str, Sequence[Outcome]]) -> dict[str, float | None]:
    """The keys of a set."""
    summary: dict[str, float | None] = {}
    for method, runs in outcomes.items():
        prefix = f"{name}/" if method == OURS else f"{name}/{method}_"
        for figure in ("ll", "rmse"):
            values = [getattr(run, figure) for run in runs]
            summary |= {prefix + figure: statistics.fmean(values), f"{prefix}{figure}_se": standard_error(values)}
        summary[prefix + "seconds"] = statistics.fmean(run.seconds for run in runs)
        if method != OURS and OURS in outcomes:
            gains = [ours.ll - run.ll for ours, run in zip(outcomes[OURS], runs, strict=True)]
            summary |= {f"{prefix}ll_gain": statistics.fmean(gains), f"{prefix}ll_gain_se": standard_error(gains)}
    return summary


def main(argv: Sequence[str] | None = None) -> None:
    args = command_line().parse_args(argv)
    if args.splits is not None and args.splits < 1:
        raise SystemExit(f"--splits: is {args.splits}; pass at least 1.")
    torch.set_num_threads(1)
    settings = QUICK if args.quick else Settings()
    rows: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    for uci_set in choose_sets(args):
        asked = args.splits or (1 if args.quick else len(uci_set.splits))
        outcomes: dict[str, list[Outcome]] = {method: [] for method in args.methods}
        for number in range(min(asked, len(uci_set.splits))):
            split = uci_set.split(number)
            for method in args.methods:
                run = METHODS[method](split, args.seed + number, settings)
                outcomes[method].append(run)
                figures = {"set": uci_set.name, "split": number, "method": method, "rows": len(split.x)}
                rows.append({**figures, "ll": run.ll, "rmse": run.rmse, "seconds": run.seconds, **run.notes})
                print(
                    f"  {uci_set.name} split {number} {method}: LL {run.ll:.3f}, RMSE {run.rmse:.4g}, "
                    f"{run.seconds:.0f} s",
                    flush=True,
                )
        summary |= summarise(uci_set.name, outcomes)
    report(rows, {"settings": dataclasses.asdict(settings), **summary}, args)


if __name__ == "__main__":
    main()
