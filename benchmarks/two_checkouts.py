"""Times a training step and a prediction of this checkout against those of another one.

Two processes that import the one and the other take turns, so that a slow phase of the machine hits both. One row per
network and call: the median over the pairs of the ratio this / other, and the noise of that median, the standard error
by resampling the pairs. Without ``--other`` this checkout is compared with itself, which shows the noise alone.

    git archive 5a497f3 | tar -x -C /tmp/other
    python benchmarks/two_checkouts.py --other /tmp/other

Summary: ``step_NETWORK``, ``predict_NETWORK`` and the same with ``_se``.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from statistics import median, stdev
from typing import Any

import pyro.distributions as dist
import torch
from _common import parser, report
from pyro.infer import Trace_ELBO
from torch import nn

import bayeshnet
from bayeshnet import likelihoods

NETWORKS = {"10-20-1": (10, 20, 60), "10-50-1": (10, 50, 442)}
CALLS = {"step": 40, "predict": 8}
# glibc gives large blocks back to the system or not, as it happens in a process: page faults then differ by a third
# between two processes of the same code. These keep the memory.
MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_TOP_PAD_": "300000000",
}


def serve() -> None:
    """Answer each line ``CALL NETWORK`` by the seconds of some calls, in a process of its own."""
    torch.set_num_threads(1)
    made: dict[str, Any] = {}
    for name, (inputs, hidden, rows) in NETWORKS.items():
        torch.manual_seed(0)
        x = torch.randn(rows, inputs)
        y = x[:, 0]
        net = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        model = bayeshnet.BayesianModel(net, likelihood=likelihoods.Normal(scale=dist.Gamma(6.0, 6.0)))
        guide = bayeshnet.AutoHypernet(model, example=(x, y))
        bayeshnet.fit(model, guide, (x, y), steps=20, progress=False)
        elbo = Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=1)
        made[name] = (model, guide, elbo, x, y)
    print("ready", flush=True)
    for line in sys.stdin:
        call, name = line.split()
        model, guide, elbo, x, y = made[name]
        began = time.perf_counter()
        for _ in range(CALLS[call]):
            if call == "step":
                elbo.loss_and_grads(model, guide, x, y)
            else:
                bayeshnet.predict(model, guide, x, 100)
        print(time.perf_counter() - began, flush=True)


def start(folder: Path) -> subprocess.Popen[str]:
    """A server that imports the package of this folder."""
    here = Path(__file__).resolve()
    paths = [str(folder), str(here.parent)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **MEMORY}
    server = subprocess.Popen(
        [sys.executable, str(here), "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )
    ask(server, "")
    return server


def ask(server: subprocess.Popen[str], line: str) -> str:
    """The server's answer to a line; to none it waits until the server is ready."""
    if server.stdin is None or server.stdout is None:
        raise RuntimeError("the server has no pipes")
    if line:
        server.stdin.write(line + "\n")
        server.stdin.flush()
    return server.stdout.readline()


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve()
        return
    command = parser(__doc__ or "")
    command.add_argument("--other", type=Path, metavar="DIR", help="root of another checkout")
    args = command.parse_args()
    torch.set_num_threads(1)
    own = Path(__file__).resolve().parents[1]
    servers = {"this": start(own), "other": start(args.other or own)}
    rng, rounds = random.Random(0), 3 if args.quick else 15
    rows: list[dict[str, Any]] = []
    summary: dict[str, float] = {}
    for name in NETWORKS:
        for call, number in CALLS.items():
            ratios: list[float] = []
            seconds: list[float] = []
            for i in range(-1, rounds):  # the first pair warms up
                order = ("this", "other") if i % 2 else ("other", "this")
                times = {which: float(ask(servers[which], f"{call} {name}")) for which in order}
                if i >= 0:
                    ratios.append(times["this"] / times["other"])
                    seconds.append(times["this"])
            drawn = [median(rng.choices(ratios, k=rounds)) for _ in range(1000)]
            ms = 1e3 * median(seconds) / number
            rows.append({"network": name, "call": call, "ms": ms, "this / other": median(ratios), "se": stdev(drawn)})
            summary[f"{call}_{name}"], summary[f"{call}_{name}_se"] = median(ratios), stdev(drawn)
    for server in servers.values():
        server.kill()
    report(rows, {**summary, "pairs": rounds}, args)


if __name__ == "__main__":
    main()
