"""The shader cache: an entry is found again, is never stale, and a failure leaves nothing behind."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from vkbackend import shader
from vkbackend.errors import DeviceError, InputError

SOURCE = """#version 450
#extension GL_GOOGLE_include_directive : require
#include "outer.glsl"
layout(local_size_x = 1) in;
layout(binding = 0) buffer Data { float x[]; };
void main() { x[0] = factor() * FACTOR; }
"""
OUTER = '#include "inner.glsl"\nfloat factor() { return inner(); }\n'
INNER = "float inner() { return 2.0; }\n"


class Tree:
    """A folder of shaders of its own, an empty cache, and a count of compiler runs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs = 0

    def write(self, name: str, text: str) -> None:
        (self.root / "shaders" / name).write_text(text)
        shader.forget_sources()

    def entries(self) -> list[str]:
        return sorted(p.name for p in (self.root / "cache").rglob("*") if p.is_file())


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    if shutil.which("glslangValidator") is None:
        pytest.skip("glslangValidator is not installed (package glslang-tools)")
    made = Tree(tmp_path)
    (tmp_path / "shaders" / "include").mkdir(parents=True)
    monkeypatch.setattr(shader, "SHADER_ROOT", tmp_path / "shaders")
    monkeypatch.setattr(shader, "INCLUDE_ROOT", tmp_path / "shaders" / "include")
    monkeypatch.setenv("LATENTVK_CACHE", str(tmp_path / "cache"))
    made.write("one.comp", SOURCE)
    made.write("include/outer.glsl", OUTER)
    made.write("include/inner.glsl", INNER)
    shader.compiler()  # asked for its version before runs are counted
    run = subprocess.run

    def counting(*args: Any, **kwargs: Any) -> Any:
        made.runs += 1
        return run(*args, **kwargs)

    monkeypatch.setattr(subprocess, "run", counting)
    return made


def test_second_compile_is_a_look_up(tree: Tree) -> None:
    first = shader.compile_shader("one.comp", {"FACTOR": "3.0"})
    assert first[:4] == b"\x03\x02\x23\x07"  # SPIR-V's magic number
    assert shader.compile_shader("one.comp", {"FACTOR": "3.0"}) == first
    assert tree.runs == 1
    assert len(tree.entries()) == 1 and tree.entries()[0].startswith("one-")


def test_anything_that_matters_is_part_of_the_key(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    macros = {"FACTOR": "3.0"}
    first = shader.compile_shader("one.comp", macros)

    def recompiled(**more: str) -> None:
        before = tree.runs, len(tree.entries())
        shader.compile_shader("one.comp", macros | more)
        assert (tree.runs, len(tree.entries())) == (before[0] + 1, before[1] + 1)

    recompiled(FACTOR="4.0")
    recompiled(UNUSED="1")
    for name, old, new in (
        ("one.comp", SOURCE, SOURCE.replace("x[0] =", "x[1] =")),
        ("include/outer.glsl", OUTER, OUTER.replace("inner();", "-inner();")),
        ("include/inner.glsl", INNER, INNER.replace("2.0", "5.0")),
    ):
        tree.write(name, new)
        recompiled()
        tree.write(name, old)
    path, version = shader.compiler()
    with monkeypatch.context() as patch:
        patch.setattr(shader, "compiler", lambda: (path, version + "newer"))
        recompiled()
    runs = tree.runs
    assert shader.compile_shader("one.comp", macros) == first
    assert tree.runs == runs


def test_failure_is_one_line_and_leaves_nothing_behind(tree: Tree) -> None:
    tree.write("broken.comp", SOURCE.replace("factor() *", "no_such_function() *"))
    with pytest.raises(shader.ShaderError) as caught:
        shader.compile_shader("broken.comp", {"FACTOR": "3.0"})
    assert str(caught.value) == (
        "shader broken.comp does not compile (FACTOR): broken.comp:6: 'no_such_function' : no matching overloaded "
        "function found; correct that line"
    )
    assert tree.entries() == []


def test_an_error_is_shown_in_the_file_that_it_is_in(tree: Tree) -> None:
    tree.write("include/inner.glsl", "// a comment\nfloat inner() {\n    return absent;\n}\n")
    with pytest.raises(shader.ShaderError) as caught:
        shader.compile_shader("one.comp", {"FACTOR": "3.0"})
    first = caught.value.diagnostics[0]
    assert (first.severity, first.place) == ("ERROR", "include/inner.glsl:3")
    assert first.excerpt(1) == "     2 | float inner() {\n>    3 |     return absent;\n     4 | }"


def test_a_file_that_is_missing_is_named_by_the_line_that_includes_it(tree: Tree) -> None:
    """glslang's own words: what is included is read before it is compiled."""
    tree.write("one.comp", SOURCE.replace("outer.glsl", "absent.glsl"))
    with pytest.raises(InputError) as caught:
        shader.compile_shader("one.comp", {})
    assert str(caught.value) == (
        f"shader source absent.glsl cannot be read (No such file or directory); expected it in {tree.root}/shaders; "
        "install again"
    )


def test_a_warning_is_an_error_where_it_is_asked_for(tree: Tree) -> None:
    tree.write("warns.comp", SOURCE.replace("#extension", "#extension GL_KHR_unheard_of : enable\n#extension", 1))
    shader.compile_shader("warns.comp", {"FACTOR": "3.0"})
    with pytest.raises(shader.ShaderError) as caught:
        shader.compile_strictly("warns.comp", {"FACTOR": "3.0"})
    assert str(caught.value) == (
        "shader warns.comp does not compile (FACTOR): warns.comp:2: '#extension' : extension not supported: "
        "GL_KHR_unheard_of; correct that line"
    )
    assert caught.value.diagnostics[0].severity == "WARNING"
    assert shader.compile_strictly("one.comp", {"FACTOR": "3.0"}) == shader.compile_shader(
        "one.comp", {"FACTOR": "3.0"}
    )


def test_missing_source_is_named(tree: Tree) -> None:
    with pytest.raises(InputError) as caught:
        shader.compile_shader("absent.comp", {})
    assert str(caught.value) == (
        f"shader source absent.comp cannot be read (No such file or directory); expected it in {shader.SHADER_ROOT}; "
        "install again"
    )
    assert tree.runs == 0


def test_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    shader.compiler.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    try:
        with pytest.raises(DeviceError) as caught:
            shader.compile_shader("embed.comp", {"FORMAT_F32": "1"})
    finally:
        shader.compiler.cache_clear()
    assert str(caught.value) == ("glslangValidator is not on the PATH; expected it: install the package glslang-tools")


def test_a_cache_that_cannot_be_written_is_named(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.write("a.comp", SOURCE)
    tree.write("include/outer.glsl", OUTER)
    tree.write("include/inner.glsl", INNER)
    blocked = tree.root / "a file"
    blocked.write_text("")
    monkeypatch.setenv("LATENTVK_CACHE", str(blocked))
    with pytest.raises(InputError) as caught:
        shader.compile_shader("a.comp", {"FACTOR": "1.0"})
    assert str(caught.value) == (
        f"shader cache {blocked}/spirv cannot be written (Not a directory); expected a writable folder: "
        "set LATENTVK_CACHE to one"
    )


def test_a_source_saved_while_it_is_compiled_leaves_no_wrong_entry(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the compiler read may be the old or the new text: the module counts for neither until both agree."""
    before = shader.compile_shader("one.comp", {"FACTOR": "2"})
    edited = SOURCE.replace("void main() {", "void main() { uint more = 1u;")
    assert edited != SOURCE
    (tree.root / "shaders" / "one.comp").write_text(edited)  # read by nobody yet
    run, saves = shader._run_compiler, [SOURCE + "// saved meanwhile\n"]

    def saving(*args: Any) -> Any:
        found = run(*args)
        if saves:
            (tree.root / "shaders" / "one.comp").write_text(saves.pop())
        return found

    monkeypatch.setattr(shader, "_run_compiler", saving)
    assert (
        shader.compile_strictly("one.comp", {"FACTOR": "2"}) == before
    )  # of the text that was saved: it differs in a comment
    monkeypatch.setattr(shader, "_run_compiler", run)
    tree.write("one.comp", edited)
    runs = tree.runs
    shader.compile_shader("one.comp", {"FACTOR": "2"})
    assert tree.runs == runs + 1  # nothing was kept for it


def test_a_source_that_never_stays_is_refused(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    run, path, count = shader._run_compiler, tree.root / "shaders" / "one.comp", iter(range(99))

    def saving(*args: Any) -> Any:
        path.write_text(f"{SOURCE}// {next(count)}\n")
        return run(*args)

    monkeypatch.setattr(shader, "_run_compiler", saving)
    with pytest.raises(InputError) as caught:
        shader.compile_strictly("one.comp", {"FACTOR": "2"})
    assert str(caught.value) == (
        "shader one.comp changed 5 times while it was compiled; expected its sources to stay: compile it again"
    )
    assert tree.entries() == []
