"""hatch_build.py compiles the companion layer: whole or not at all, and what is missing is told in one line."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = "vkbackend/companion"
LIBRARY = f"{FOLDER}/liblatentvk_companion.so"
NEEDS_COMPILER = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler (cc)")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the build reads."""
    (tmp_path / FOLDER).mkdir(parents=True)
    shutil.copy(ROOT / "hatch_build.py", tmp_path)
    return tmp_path


def build(checkout: Path, **environment: str) -> tuple[int, list[str]]:
    """Exit code of the build and the lines it prints."""
    done = subprocess.run(
        [sys.executable, "hatch_build.py"],
        cwd=checkout,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()


@NEEDS_COMPILER
def test_the_layers_sources_compile_without_a_warning(checkout: Path) -> None:
    for source in (ROOT / FOLDER).glob("*.[ch]"):
        shutil.copy(source, checkout / FOLDER)
    assert build(checkout, CC="cc -Werror") == (0, [])
    assert hasattr(ctypes.CDLL(str(checkout / LIBRARY)), "vkNegotiateLoaderLayerInterfaceVersion")


@NEEDS_COMPILER
def test_a_library_in_use_is_replaced_and_a_failed_build_leaves_the_old_one(checkout: Path) -> None:
    source, library = checkout / FOLDER / "layer.c", checkout / LIBRARY
    source.write_text('__attribute__((visibility("default"))) int answer(void);\nint answer(void) { return 1; }\n')
    assert build(checkout) == (0, [])
    loaded, first = ctypes.CDLL(str(library)), library.stat().st_ino
    assert build(checkout) == (0, [])
    assert library.stat().st_ino != first
    assert loaded.answer() == 1
    second = library.stat().st_ino
    source.write_text("int answer(void) { return missing; }\n")
    code, lines = build(checkout)
    assert code == 1
    assert any("'missing' undeclared" in line for line in lines)
    assert lines[-1] == (
        "latentvk: error: cc could not compile vkbackend/companion (its messages are above); expected a C11 compiler "
        "and Vulkan headers of 1.3.204 or newer: update gcc and libvulkan-dev, or name another compiler in CC"
    )
    assert library.stat().st_ino == second
    assert sorted(path.name for path in (checkout / FOLDER).iterdir()) == ["layer.c", "liblatentvk_companion.so"]


@NEEDS_COMPILER
def test_missing_vulkan_headers_name_the_package(checkout: Path) -> None:
    (checkout / FOLDER / "layer.c").write_text("#include <vulkan/not_there.h>\n")
    assert build(checkout) == (
        1,
        [
            "latentvk: error: cc found no vulkan/not_there.h; expected the Vulkan headers: install libvulkan-dev",
        ],
    )


def test_a_missing_compiler_is_named(checkout: Path) -> None:
    (checkout / FOLDER / "layer.c").touch()
    assert build(checkout, CC="no-such-compiler -m64") == (
        1,
        [
            "latentvk: error: no C compiler 'no-such-compiler' on this machine; expected one to build latentvk's "
            "Vulkan layer: install gcc and libc6-dev, or name a compiler in CC"
        ],
    )


@NEEDS_COMPILER
def test_missing_sources_are_told(checkout: Path) -> None:
    assert build(checkout) == (
        1,
        ["latentvk: error: no C sources in vkbackend/companion; expected the Vulkan layer's: get the whole repository"],
    )
