"""The fuzz target on a few hundred cases; tools/fuzz_gguf.py runs millions."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.gguf_file import GGUFFile
from tests.fuzz.mutate import case
from tests.fuzz.seeds import seeds
from tests.fuzz.target import run, sites, write
from vkbackend.errors import InputError


def test_good_files_are_good() -> None:
    """Else a case would end at the same first error, whatever is damaged."""
    unharmed = 0
    for parts in seeds():
        with tempfile.TemporaryDirectory() as folder:
            raised = run(write(parts, Path(folder)))
        assert {module for module, _ in raised} <= {"gguf_file", "config", "tensors", "vocabulary"}
        unharmed += not raised
    assert unharmed >= 10


@settings(max_examples=300, deadline=10_000)
@given(index=st.integers(0, 2**32))
def test_nothing_but_input_errors(index: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run(write(case(1, index), Path(folder)))


def test_a_case_is_made_from_its_number_alone() -> None:
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        for index in range(20):
            one, other = Path(a) / str(index), Path(b) / str(index)
            for folder in (one, other):
                folder.mkdir()
                write(case(2, index), folder)
            names = sorted(path.name for path in one.iterdir())
            assert names == sorted(path.name for path in other.iterdir())
            for name in names:
                if (one / name).is_file():
                    assert (one / name).read_bytes() == (other / name).read_bytes()


def test_damage_reaches_most_errors(tmp_path: Path) -> None:
    reached = set()
    for index in range(400):
        folder = tmp_path / str(index)
        folder.mkdir()
        reached.update(run(write(case(4, index), folder)))
    places = [s for s in sites() if any(s[0] == module and s[1] <= line <= s[2] for module, line in reached)]
    assert len(places) > len(sites()) / 2


@pytest.mark.parametrize("error", [KeyError("k"), MemoryError(), RecursionError(), InputError("two\nlines")])
def test_the_target_lets_no_other_error_pass(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> GGUFFile:
        raise error

    path = write(seeds()[0], tmp_path)
    monkeypatch.setattr(GGUFFile, "open", fail)
    with pytest.raises(AssertionError if isinstance(error, InputError) else type(error)):
        run(path)


def test_the_tool_reports_what_it_did() -> None:
    tool = Path(__file__).parents[2] / "tools" / "fuzz_gguf.py"
    done = subprocess.run(
        [sys.executable, str(tool), "--cases", "41", "--processes", "2", "--first", "7"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"41 cases in \d+ s \(\d+/s\), \d+ without an error", lines[0])
    assert re.fullmatch(r"slowest: case \d+, \d+ ms; peak \d+ MB resident", lines[1])
    assert re.match(rf"InputError reached from \d+ of {len(sites())} places; not from ", lines[2])
    assert lines[3:] == ["nothing but InputErrors of one line"]
