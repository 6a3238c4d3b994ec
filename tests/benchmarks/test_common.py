from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def common():
    path = Path(__file__).parents[2] / "benchmarks" / "_common.py"
    spec = importlib.util.spec_from_file_location("benchmarks_common", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_alternating_order(common):
    calls = []
    fns = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = common.alternate(fns, 4, warm_up=1)
    assert "".join(calls) == "abc" + "abc" + "acb" + "cab" + "cba"
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 4, "b": 4, "c": 4}


def test_times_are_seconds(common):
    times = common.alternate({"sleep": lambda: time.sleep(0.02), "nothing": lambda: None}, 3, warm_up=0)
    assert common.ms(times["sleep"]) > 19
    assert common.median_ratio(times["nothing"], times["sleep"]) < 0.5


def test_memory_peak(common, tmp_path):
    """In a fresh process: in one that has freed much memory a new block may come from there."""
    script = tmp_path / "peak.py"
    script.write_text(
        f"import json, sys; sys.path.insert(0, {str(Path(common.__file__).parent)!r})\n"
        "import torch; from _common import peak_memory\n"
        "print(json.dumps(peak_memory(lambda: torch.ones(16 * 2**20).sum())))\n"
    )
    before, peak = common.run_fresh(str(script))
    assert peak - before > 60 * 2**20


def test_report(common, tmp_path, capsys):
    args = common.parser("Nothing.").parse_args(["--quick", "--json", str(tmp_path / "out.json")])
    assert args.quick
    common.report([{"case": "a", "ms": 1.23456}, {"case": "long", "more": 3}], {"ratio": 0.5}, args)
    printed = capsys.readouterr().out
    assert "case     ms  more" in printed
    assert "ratio = 0.5" in printed
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert written["summary"] == {"ratio": 0.5}
    assert written["rows"][0]["ms"] == 1.23456
    assert written["machine"]["threads"] == torch.get_num_threads()


def test_fresh_process(common, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys; print('noise'); print(sys.argv[1])", encoding="utf-8")
    assert common.run_fresh(str(script), "[1, 2]") == [1, 2]
