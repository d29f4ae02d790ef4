"""Imports run one way: harness -> model -> vkbackend. Nothing below imports upward."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A package may import itself and those after it.
LAYERS = ("harness", "model", "vkbackend")


def imported(source: str, module: str) -> set[str]:
    """Full names of what ``source`` imports, also inside functions, by ``importlib.import_module`` with a literal and
    relative to ``module`` (the dotted name of its own package)."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: len(module.split(".")) - node.level + 1] if node.level else []
            found.add(".".join([*base, *([node.module] if node.module else [])]))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "import_module"):
            found |= {str(a.value) for a in node.args[:1] if isinstance(a, ast.Constant)}
    return found


def upward(source: str, module: str) -> set[str]:
    """The imports of ``source`` that go against the rule."""
    layer = LAYERS.index(module.split(".")[0])
    return {name for name in imported(source, module) if name.split(".")[0] in LAYERS[:layer]}


@pytest.mark.parametrize("layer", LAYERS)
def test_nothing_imports_upward(layer: str) -> None:
    files = sorted((ROOT / layer).rglob("*.py"))
    assert files, f"{layer} holds no Python files"
    wrong = {
        str(path.relative_to(ROOT)): names
        for path in files
        if (names := upward(path.read_text(), ".".join(path.relative_to(ROOT).parts[:-1])))
    }
    assert wrong == {}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vkbackend", "import model.config"),
        ("vkbackend", "def f():\n    from harness import cli"),
        ("model.reference", "from harness.units import mib"),
        ("model", "import importlib\nx = importlib.import_module('harness.cli')"),
    ],
)
def test_the_rule_sees_a_violation(module: str, source: str) -> None:
    assert upward(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("harness", "from model.config import ModelConfig\nimport vkbackend.device"),
        ("model.reference", "from ..config import ModelConfig\nfrom . import ops"),
        ("model", "import harness_of_another_project"),
    ],
)
def test_the_rule_lets_downward_imports_pass(module: str, source: str) -> None:
    assert not upward(source, module)


def test_relative_imports_are_resolved() -> None:
    assert imported("from ..config import X\nfrom . import ops\nfrom .ops import y", "model.reference") == {
        "model.config",
        "model.reference",
        "model.reference.ops",
    }
