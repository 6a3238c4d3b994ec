"""How much memory is left, by what the system and its control groups say."""

from __future__ import annotations

import pytest

from bayeshnet.errors import ArgumentError
from bayeshnet.sites.memory import available_memory, in_bytes, refuse_too_large


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MEMINFO = {"proc/meminfo": "MemTotal:       1000 kB\nMemAvailable:    800 kB\n"}


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, None),
        (MEMINFO, 800 * 1024),
        # The group itself has no limit, the one around it has.
        (
            MEMINFO
            | {
                "proc/self/cgroup": "0::/outer/inner\n",
                "sys/fs/cgroup/outer/inner/memory.max": "max\n",
                "sys/fs/cgroup/outer/inner/memory.current": "5\n",
                "sys/fs/cgroup/outer/memory.max": "1000\n",
                "sys/fs/cgroup/outer/memory.current": "700\n",
                "sys/fs/cgroup/outer/memory.stat": "anon 1\ninactive_file 50\n",
            },
            350,
        ),
        # In a container the path is that of the host.
        (
            {
                "proc/self/cgroup": "0::/docker/1234\n",
                "sys/fs/cgroup/memory.max": "4000\n",
                "sys/fs/cgroup/memory.current": "1000\n",
            },
            3000,
        ),
        # Of the first version.
        (
            MEMINFO
            | {
                "proc/self/cgroup": "5:cpu:/job\n4:memory:/job\n",
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "900\n",
                "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "1000\n",
            },
            0,
        ),
    ],
    ids=["nothing", "system", "groups", "container", "first version"],
)
def test_the_least_of_what_is_said(tmp_path, files, left):
    write(tmp_path, files)
    assert available_memory(root=tmp_path) == left


def test_other_devices_say_nothing():
    assert available_memory("meta") is None


def test_numbers_of_bytes():
    assert [in_bytes(n) for n in (999, 1.5e6, 12e6, 44.7e9)] == ["1.0 kB", "1.5 MB", "12 MB", "45 GB"]


def test_what_is_small_is_not_asked_about(monkeypatch):
    monkeypatch.setattr("bayeshnet.sites.memory.available_memory", lambda device="cpu": 0)
    refuse_too_large(2**28, "it: is small", ["do without"])
    with pytest.raises(
        ArgumentError, match="it: is large, which takes at least 268 MB of memory, and 0.0 kB are left; do"
    ):
        refuse_too_large(2**28 + 1, "it: is large", ["do without"])
