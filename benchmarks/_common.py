"""What all benchmarks share: command line, one thread, alternating timing, memory peaks, a table and a JSON file.

Importing it sets PyTorch to one thread: what is compared is then the work, not how it is spread over cores. A benchmark
reads::

    args = parser("What is measured.").parse_args()
    times = alternate({"ours": f, "theirs": g}, repeats=5 if args.quick else 21)
    rows = [{"case": "B=8", "ours": ms(times["ours"]), "theirs": ms(times["theirs"])}]
    report(rows, {"ratio_b8": median_ratio(times["ours"], times["theirs"])}, args)
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

import bayeshnet

__all__ = ["alternate", "machine_info", "median_ratio", "ms", "parser", "peak_memory", "report", "run_fresh"]

torch.set_num_threads(1)


def parser(description: str) -> argparse.ArgumentParser:
    """A command line with ``--quick`` and ``--json FILE``; add what else a benchmark needs."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--quick", action="store_true", help="fewer repetitions: seconds instead of minutes")
    made.add_argument("--json", type=Path, metavar="FILE", help="write summary, rows and machine to a file too")
    return made


# ---------------------------------------------------------------------- time


def alternate(fns: Mapping[str, Callable[[], Any]], repeats: int, *, warm_up: int = 2) -> dict[str, list[float]]:
    """Time functions in turn, so that a slow phase of the machine hits all of them.

    Each round starts with another function and every second one runs backwards, so that each function follows each
    other one. Garbage is collected between calls, not during them.

    Args:
        fns: What to time, by name.
        repeats: Number of rounds.
        warm_up: Number of untimed calls of each function before.

    Returns:
        Seconds of wall time for each round, by name.
    """
    names = list(fns)
    for name in names:
        for _ in range(warm_up):
            fns[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    enabled = gc.isenabled()
    gc.disable()
    try:
        for i in range(repeats):
            shift = i % len(names)
            order = names[shift:] + names[:shift]
            for name in order if i % 2 == 0 else reversed(order):
                gc.collect(0)
                start = time.perf_counter()
                result = fns[name]()
                times[name].append(time.perf_counter() - start)
                del result
    finally:
        if enabled:
            gc.enable()
    return times


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median time of one over median time of the other."""
    return median(ours) / median(theirs)


def ms(times: Sequence[float]) -> float:
    """Median in milliseconds."""
    return 1e3 * median(times)


# ---------------------------------------------------------------------- memory


def peak_memory(fn: Callable[[], Any]) -> tuple[int, int]:
    """Resident memory of this process before a call and at its peak during the call, in bytes.

    Measure in a fresh process (:func:`run_fresh`): memory that earlier work freed may be used again unnoticed.
    """
    with contextlib.suppress(OSError):  # Linux forgets the peak so far on request
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _status("VmRSS")
    fn()
    return before, _status("VmHWM")


def _status(field: str) -> int:
    """A field of ``/proc/self/status`` in bytes; elsewhere the peak so far."""
    path = Path("/proc/self/status")
    if path.exists():
        line = next(line for line in path.read_text(encoding="ascii").splitlines() if line.startswith(field))
        return 1024 * int(line.split()[1])
    import resource  # noqa: PLC0415 - not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def run_fresh(script: str, *arguments: str) -> Any:
    """Run a script in a fresh Python process and read the JSON that it prints in its last line."""
    done = subprocess.run([sys.executable, script, *arguments], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


# ---------------------------------------------------------------------- report


def machine_info() -> dict[str, Any]:
    """Where the numbers come from."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        cpu = models[0].partition(":")[2].strip() if models else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "bayeshnet": bayeshnet.__version__,
    }


def report(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], args: argparse.Namespace) -> None:
    """Print rows as a table, then the summary and the machine; with ``--json`` write all of it to a file."""
    machine = machine_info()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_cell(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join([first, *rest]).rstrip())
    print()
    for key, value in summary.items():
        print(f"{key} = {_cell(value)}")
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    if args.json is not None:
        whole = {"summary": dict(summary), "rows": [dict(row) for row in rows], "machine": machine}
        args.json.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
