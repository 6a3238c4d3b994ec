from __future__ import annotations

import errno
import json
import os
import random
import signal
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from bayeshnet.errors import ArgumentTypeError, CheckpointError
from bayeshnet.training import _replacing
from bayeshnet.training._replacing import TEMPORARY, replacing
from bayeshnet.training.files import DTYPES, has_checksum, parsed_json, read_file, write_file
from tests.training.files import signed, with_description

FORKS = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def some_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    made = {key: torch.randn(3, 2).mul(3.0).to(dtype) for key, dtype in DTYPES.items() if not key.startswith("C")}
    return {
        **made,
        "C64": torch.randn(4, dtype=torch.complex64).conj(),
        "": torch.zeros(()),
        "transposed": torch.randn(2, 5).t(),
        "empty": torch.zeros(0, 3),
        "expanded": torch.ones(()).expand(1),
        "expanded_more": torch.ones(()).expand(3, 1),
        "part": torch.randn(100)[3:5],
        "ünï": torch.ones(1, requires_grad=True),
    }


NUMPY = (torch.float64, torch.float32, torch.int64, torch.uint8, torch.bool, torch.complex64)


def temporaries(folder):
    return [name for name in os.listdir(folder) if name.endswith(TEMPORARY)]


# ---------------------------------------------------------------------- the format


def test_every_dtype_comes_back_to_the_bit(tmp_path):
    tensors = some_tensors()
    description = {"numbers": [1, 2.5, None, True, 10**30], "ü\n\"'": {"": []}}
    write_file(tmp_path / "run", tensors, description)
    found, text = read_file(tmp_path / "run")
    assert text == description
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        plain = value.detach().resolve_conj().clone(memory_format=torch.contiguous_format)
        if plain.dtype in NUMPY:
            assert found[name].numpy().tobytes() == plain.numpy().tobytes()
        else:
            assert torch.equal(found[name].double(), plain.double())


def test_other_readers_of_safetensors_accept_it(tmp_path):
    tensors = some_tensors()
    write_file(tmp_path / "run", tensors, {"step": 3})
    found = load_file(tmp_path / "run")
    assert found.keys() == tensors.keys()
    assert torch.equal(found["F64"], tensors["F64"])
    assert torch.equal(found["BOOL"], tensors["BOOL"])
    with safe_open(tmp_path / "run", "pt") as file:
        assert json.loads(file.metadata()["description"]) == {"step": 3}
    assert has_checksum(tmp_path / "run")


def test_every_byte_is_covered(tmp_path):
    """Not 40 random ones but two or three of each byte."""
    path = tmp_path / "run"
    write_file(path, {"w": torch.tensor([1.0, 2.0])}, {"step": 3})
    whole = path.read_bytes()
    for place in range(0, 8 * len(whole), 3):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError):
            read_file(path)
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_file(path)
    path.write_bytes(whole + b" ")
    with pytest.raises(CheckpointError, match="checksum is not that of its contents. Use another copy"):
        read_file(path)


ENTRY = '"dtype":"F32","shape":[1],"data_offsets":[0,4]'


@pytest.mark.parametrize(
    "header",
    [
        b'"',  # no JSON
        b'","description":"{}"},"\xff":{}}',  # no UTF-8
        b'","description":"{}"},"w":{%s},"w":{%s}}' % (ENTRY.encode(), ENTRY.encode()),
        b'"}}',
        b'","description":{}}}',
        b'","description":"{}"},"w":3}',
        b'","description":"{}"},"w":' + b"[" * 200 + b"]" * 200 + b"}",
        b'","description":"{}"},"w":' + b"[" * 10**5 + b"]" * 10**5 + b"}",
        b'","description":"{}"},"w":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4000000000]}}',
        b'","description":"{}"},"w":{"dtype":"F32","shape":[1],"data_offsets":[0,5]}}',
        b'","description":"{}"},"w":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}',
        b'","description":"{}"},"w":{"dtype":"F32","shape":[1],"data_offsets":[0.0,4.0]}}',
        b'","description":"{}"},"w":{"dtype":"F32","shape":[-1,-1],"data_offsets":[0,4]}}',
        b'","description":"{}"},"w":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}',
        b'","description":"{}"},"w":{"dtype":"F32","shape":[0,9000000000000000000,9],"data_offsets":[0,0]}}',
        b'","description":"{}"},"w":{"dtype":"F32","shape":[%s],"data_offsets":[0,0]}}' % (b"9" * 5000),
        b'","description":"{}"},"w":{"dtype":"F32","shape":[1e999],"data_offsets":[0,0]}}',
        b'","description":"{}"},"w":{"dtype":"float32","shape":[1],"data_offsets":[0,4]}}',
        b'","description":"{}"},"w":{"dtype":[],"shape":[1],"data_offsets":[0,4]}}',
        b'","description":"{}"},"w":{"dtype":"F32","shape":{},"data_offsets":[0,4]}}',
        b'","description":"{}"},"w":{"dtype":"F32","shape":[1]}}',
        b'","description":"{}"},"w":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}',  # four bytes are left over
        b'","description":"{}"},"v":{%s},"w":{%s}}' % (ENTRY.encode(), ENTRY.encode()),  # one upon the other
    ],
)
def test_hostile_headers_with_a_checksum_that_fits(header, tmp_path):
    (tmp_path / "run").write_bytes(signed(header, b"\0\0\0\0"))
    with pytest.raises(CheckpointError, match="^path: "):
        read_file(tmp_path / "run")


def test_the_maker_of_hostile_files_makes_good_ones_too(tmp_path):
    with_description(tmp_path / "run", '{"a": 1}', f',"w":{{{ENTRY}}}', b"\0\0\0\0")
    assert read_file(tmp_path / "run") == ({"w": torch.zeros(1)}, {"a": 1})


@pytest.mark.parametrize(
    "text",
    ["", "3", "[]", '{"a": 1, "a": 2}', '{"a": NaN}', '{"a": -Infinity}', '{"a": 1e400}', '{"a": ' + "9" * 5000 + "}"]
    + ['{"a": ' + "[" * n + "]" * n + "}" for n in (100, 2000, 10**6)]
    + ['{"a": ' + '{"b":' * n + "3" + "}" * n + "}" for n in (100, 10**5)],
)
def test_hostile_descriptions(text, tmp_path):
    with pytest.raises(CheckpointError, match="description.* is damaged"):
        read_file(with_description(tmp_path / "run", text))
    with pytest.raises(CheckpointError):
        parsed_json(b"\xff\xfe", "it")


def test_a_header_that_is_longer_than_the_file(tmp_path):
    whole = bytearray(signed(b'","description":"{}"}}'))
    whole[:8] = (2**63).to_bytes(8, "little")
    (tmp_path / "run").write_bytes(whole)
    with pytest.raises(CheckpointError):
        read_file(tmp_path / "run")


def test_what_cannot_be_written(tmp_path):
    for tensors, description in (
        ({"w": torch.zeros(2, dtype=torch.complex128)}, {}),
        ({"w": torch.zeros(2).to_sparse()}, {}),
        ({"w": torch.zeros(2, device="meta")}, {}),
        ({"__metadata__": torch.zeros(2)}, {}),
        ({}, {"w": torch.zeros(2)}),
        ({}, {"w": float("nan")}),
    ):
        with pytest.raises(ArgumentTypeError, match="^tensors: |^description: "):
            write_file(tmp_path / "run", tensors, description)
    assert not os.listdir(tmp_path)


# ---------------------------------------------------------------------- the old or the new


def in_a_fork(act) -> int:
    """What a forked child ends with: 0 if ``act`` returned."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def write_number(path, number: int) -> None:
    write_file(path, {"w": torch.full((50_000,), float(number)), "v": torch.tensor(number)}, {"number": number})


def check_whole(path) -> int:
    tensors, description = read_file(path)
    number = description["number"]
    assert bool((tensors["w"] == number).all())
    assert int(tensors["v"]) == number
    return number


@FORKS
def test_two_hundred_killed_writers(tmp_path):
    path = tmp_path / "run"
    write_number(path, 0)
    chance = random.Random(0)
    for i in range(200):
        pid = os.fork()
        if pid == 0:
            number = 1000 * i
            while True:
                number += 1
                write_number(path, number)
        time.sleep(chance.uniform(0.0, 0.02))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL  # it did not end by an error
        check_whole(path)
        assert len(temporaries(tmp_path)) <= 1  # those of earlier writers were removed
    left = [check_whole(path)]
    assert left[0] > 100_000  # writers came to write
    write_number(path, 5)
    assert os.listdir(tmp_path) == ["run"]


@FORKS
def test_a_full_disk(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "run"
    write_number(path, 1)

    def fail():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(OSError, match="cannot be written.*a file that was there is unchanged") as error:
            write_number(path, 2)
        assert error.value.errno == errno.EFBIG

    assert in_a_fork(fail) == 0
    assert check_whole(path) == 1
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize("call", ["fsync", "replace", "fchmod"])
def test_errors_at_each_step_leave_the_old_file(call, tmp_path, monkeypatch):
    path = tmp_path / "run"
    write_number(path, 1)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_replacing.os, call, full)
    with pytest.raises(OSError, match=r"run cannot be written \(No space .*the disk is full; free some space; a file"):
        write_number(path, 2)
    monkeypatch.undo()
    assert check_whole(path) == 1
    assert os.listdir(tmp_path) == ["run"]


def test_an_interrupted_block_leaves_the_old_file(tmp_path):
    path = tmp_path / "run"
    write_number(path, 1)

    def interrupted():
        with replacing(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert check_whole(path) == 1
    assert os.listdir(tmp_path) == ["run"]


def test_a_folder_that_cannot_be_flushed(tmp_path, monkeypatch):
    def fail(code):
        def flush(descriptor, real=os.fsync):
            if os.path.isdir(f"/proc/self/fd/{descriptor}"):
                raise OSError(code, os.strerror(code))
            real(descriptor)

        return flush

    monkeypatch.setattr(_replacing.os, "fsync", fail(errno.EINVAL))
    write_number(tmp_path / "run", 1)  # the file system does not offer it
    monkeypatch.setattr(_replacing.os, "fsync", fail(errno.EIO))
    with pytest.raises(OSError, match="the new file is there"):
        write_number(tmp_path / "run", 2)
    assert check_whole(tmp_path / "run") == 2


def as_nobody(act) -> int:
    """Run in a child that root's rights are taken from."""

    def drop():
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        act()

    return in_a_fork(drop)


@FORKS
@pytest.mark.parametrize("protect", ["folder", "file"])
def test_read_only(protect, tmp_path):
    """A folder in which nothing can be made; a file that is write-protected, which a rename would not ask."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "run"
    write_number(path, 1)
    path.chmod(0o444 if protect == "file" else 0o666)
    folder.chmod(0o555 if protect == "folder" else 0o777)
    # pytest's own folders are closed to others.
    opened = [part for part in (tmp_path, *tmp_path.parents[:2]) if part.stat().st_uid == os.getuid()]
    modes = [part.stat().st_mode for part in opened]
    for part in opened:
        part.chmod(0o755)

    def fail():
        with pytest.raises(PermissionError, match="run cannot be written.*choose another folder"):
            write_number(path, 2)

    try:
        assert as_nobody(fail) == 0
    finally:
        for part, mode in zip(opened, modes, strict=True):
            part.chmod(mode)
    folder.chmod(0o755)
    assert check_whole(path) == 1
    assert os.listdir(folder) == ["run"]


# ---------------------------------------------------------------------- what was there


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "far").mkdir()
    write_number(tmp_path / "far" / "real", 1)
    (tmp_path / "second").symlink_to(tmp_path / "far" / "real")
    (tmp_path / "first").symlink_to("second")
    write_number(tmp_path / "first", 2)
    assert (tmp_path / "first").is_symlink()
    assert (tmp_path / "second").is_symlink()
    assert check_whole(tmp_path / "far" / "real") == 2
    (tmp_path / "to_nothing").symlink_to("far/made")
    write_number(tmp_path / "to_nothing", 3)
    assert check_whole(tmp_path / "far" / "made") == 3
    assert sorted(os.listdir(tmp_path / "far")) == ["made", "real"]


def test_links_that_lead_nowhere(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="leads to itself"):
        write_number(tmp_path / "loop", 1)
    (tmp_path / "away").symlink_to("no_folder/run")
    with pytest.raises(FileNotFoundError, match="its folder is not there; make it first"):
        write_number(tmp_path / "away", 1)
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="choose another name"):
        write_number(tmp_path / "folder", 1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe cannot be written"):
        write_number(tmp_path / "pipe", 1)


def test_another_hard_link_keeps_the_old_contents(tmp_path):
    write_number(tmp_path / "run", 1)
    os.link(tmp_path / "run", tmp_path / "other")
    write_number(tmp_path / "run", 2)
    assert check_whole(tmp_path / "run") == 2
    assert check_whole(tmp_path / "other") == 1


def test_permissions(tmp_path):
    path = tmp_path / "run"
    before = os.umask(0o027)
    try:
        write_number(path, 1)
        assert path.stat().st_mode & 0o777 == 0o640  # as for any new file
        path.chmod(0o604)
        write_number(path, 2)
        assert path.stat().st_mode & 0o777 == 0o604
    finally:
        os.umask(before)


def test_long_names(tmp_path):
    write_number(tmp_path / ("a" * 255), 1)
    write_number(tmp_path / ("ü" * 127), 1)
    with pytest.raises(OSError, match="choose a shorter one"):
        write_number(tmp_path / ("a" * 256), 1)
    assert len(os.listdir(tmp_path)) == 2


@FORKS
def test_temporaries_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    path = tmp_path / "run"
    strays = [f".run.{number}.1.abc{TEMPORARY}" for number in range(3)]
    for stray in strays:
        (tmp_path / stray).write_bytes(b"half")
    (tmp_path / "mine.tmp").write_bytes(b"")
    with replacing(path) as file:  # this one lives
        file.write(b"first")
        assert len(temporaries(tmp_path)) == 1
        assert in_a_fork(lambda: write_number(tmp_path / "other", 1)) == 0
        with replacing(path) as second:
            second.write(b"second")
            assert len(temporaries(tmp_path)) == 2
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert sorted(os.listdir(tmp_path)) == ["mine.tmp", "other", "run"]


def test_a_temporary_that_is_taken_for_a_stray_is_made_again(tmp_path, monkeypatch):
    """Between making and locking it another process may find it, and remove it."""
    lock, seen = _replacing._lock, []

    def slow(descriptor):
        if not seen:
            seen.extend(temporaries(tmp_path))
            os.unlink(tmp_path / seen[0])
        return lock(descriptor)

    monkeypatch.setattr(_replacing, "_lock", slow)
    write_number(tmp_path / "run", 1)
    assert len(seen) == 1
    assert check_whole(tmp_path / "run") == 1
    assert os.listdir(tmp_path) == ["run"]
