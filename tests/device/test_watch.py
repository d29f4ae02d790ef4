"""`latentvk shaders watch` as a user runs it: a process that watches a copy of the shaders while they are edited."""

import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vkbackend.device import Device
from vkbackend.shader import SHADER_ROOT

_TIMEOUT_S = 120  # against a hang


class Watching:
    """The process, and what it printed for each save."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        command = [sys.executable, "-u", "-m", "harness.cli", "shaders", "watch", *arguments]
        environment = {**os.environ, "LATENTVK_SHADERS": str(folder), "COLUMNS": "160"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line.rstrip())

    def next(self) -> tuple[list[str], str]:
        """Until the next cycle is over: its lines, and the last of them, which says how it went."""
        lines = []
        while True:
            line = self.lines.get(timeout=_TIMEOUT_S)
            lines.append(line)
            if ": answered in " in line:
                return lines, line

    def save(self, name: str, old: str, new: str) -> None:
        path = self.folder / name
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))


@pytest.fixture
def watching(device: Device, tmp_path: Path) -> Iterator[Watching]:
    for tool in ("glslangValidator", "spirv-val"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    shutil.copytree(SHADER_ROOT, tmp_path / "shaders")
    made = Watching(tmp_path / "shaders", "embed q5_0", "moe_sum")
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()


def test_saves_are_answered_until_ctrl_c(watching: Watching) -> None:
    lines, status = watching.next()
    assert status.startswith("start: answered in ")
    rows = [line.split() for line in lines if line.split()[:2] in (["embed", "q5_0"], ["moe_sum", "ok,"])]
    assert len(rows) == 2
    assert any("\u00b5s" in line and "GB/s" in line for line in lines)
    assert status.endswith("; all ok; Ctrl-C ends")
    decoder = "include/format_q5_0.glsl"
    watching.save(decoder, "r.da = packed_half(scale_base, g);", "r.da = 1.01 * packed_half(scale_base, g);")
    lines, status = watching.next()
    assert status.startswith("format_q5_0.glsl saved: answered in ")
    assert "; 1 of 2 variants fail; " in status
    assert any(line.startswith("embed q5_0: 37 x ") and "x[token 0, column 0] is " in line for line in lines)

    watching.save(decoder, "r.da = 1.01 *", "r.da = nothing *")
    lines, status = watching.next()
    assert any(
        line.startswith("include/format_q5_0.glsl:") and "'nothing' : undeclared identifier" in line for line in lines
    )
    assert any(line.startswith("> ") and "r.da = nothing * packed_half" in line for line in lines)

    watching.save(decoder, "r.da = nothing *", "r.da =")
    lines, status = watching.next()
    assert status.endswith("; all ok; Ctrl-C ends"), "\n".join(lines)

    watching.save("moe_sum.comp", "void main() {", "// only this one\nvoid main() {")
    assert watching.next()[1].startswith("moe_sum.comp saved: ")

    watching.process.send_signal(signal.SIGINT)
    assert watching.process.wait(timeout=_TIMEOUT_S) == 0


def test_a_kernel_without_an_end_is_ended_by_the_next_save(watching: Watching) -> None:
    lines, status = watching.next()
    assert status.endswith("; all ok; Ctrl-C ends"), "\n".join(lines)
    decoder, good = "include/format_q5_0.glsl", "r.da = packed_half(scale_base, g);"
    # lavapipe ends a loop after 65,536 passes, so that two make a hang.
    endless = "for (uint i = 0u; r.da > -1e30; i++) for (uint k = 0u; r.da > -1e30; k++) r.da = min(r.da + 1.0, 7.0);"
    watching.save(decoder, good, f"{good} {endless}")
    time.sleep(4)  # it hangs by now; were it not running yet, the next save would come first
    watching.save(decoder, f"{good} {endless}", good)
    lines, status = watching.next()
    assert status.endswith("; all ok; Ctrl-C ends"), "\n".join(lines)
