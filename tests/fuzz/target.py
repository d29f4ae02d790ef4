"""What a case must survive: reading, the config, the inspection, the tokenizer. Nothing but an InputError may leave."""

from __future__ import annotations

import ast
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rich.console import Console

import model
from harness import inspect
from harness.subject import Subject
from model.config import ModelConfig, expected_tensors, require_supported
from model.gguf_file import GGUFFile, dequantize, drop_pages
from model.tokenizer import Tokenizer
from tests.fuzz.seeds import Part
from vkbackend.errors import InputError

MODULES = ("gguf_parse", "gguf_shards", "gguf_file", "metadata", "config", "tensors")
MODULES += ("tokenizer", "vocabulary", "byte_pairs", "sentence_pieces")
MOST_LINE = 2000  # characters of an error, paths left out: what a file can put into one is bounded
_FOLDER = Path(model.__file__).parent if model.__file__ else Path("model").resolve()
_TEXT = "Ab1 \n\u00e9\U0001f600<|endoftext|> [gMASK]x"

# (module, first line, last line) of a place that raises InputError.
Site = tuple[str, int, int]


def sites() -> list[Site]:
    """Every place in the modules under test that raises an InputError."""
    found = []
    for module in MODULES:
        for node in ast.walk(ast.parse((_FOLDER / f"{module}.py").read_text())):
            if isinstance(node, ast.Raise) and node.exc is not None:
                found.append((module, node.lineno, node.end_lineno or node.lineno))
    return sorted(found)


def raised_at(traceback: TracebackType | None) -> tuple[str, int]:
    """Module and line of the innermost frame."""
    place = ("", 0)
    while traceback is not None:
        place = (Path(traceback.tb_frame.f_code.co_filename).stem, traceback.tb_lineno)
        traceback = traceback.tb_next
    return place


def write(parts: Sequence[Part], folder: Path) -> Path:
    """Write the files of a case into an empty ``folder`` and return the one to open."""
    for part in {part.name: part for part in reversed(parts)}.values():
        part.write(folder)
    return folder / parts[0].name


def run(path: Path, whole: bool = True) -> list[tuple[str, int]]:
    """Read everything of ``path`` that a command would; where each InputError was raised, none for a good file.

    Any other exception passes through: it is what fuzzing looks for. ``whole`` also runs what takes longer than all the
    rest: dequantising, the tables that ``inspect`` prints, every token's text.
    """
    raised: list[tuple[str, int]] = []
    with _noting(raised, path):
        gguf = GGUFFile.open(path)
        _read(gguf, raised, whole)
        with _noting(raised, path):
            _inspect(gguf, whole)
        with _noting(raised, path):
            _tokenize(gguf, whole)
    return raised


@contextmanager
def _noting(raised: list[tuple[str, int]], path: Path) -> Iterator[None]:
    """Let an InputError end the block, and note where it was raised."""
    try:
        yield
    except InputError as error:
        line = str(error).replace(str(path.parent), "")
        assert line.isprintable() and len(line) < MOST_LINE, line
        raised.append(raised_at(error.__traceback__))


def _read(gguf: GGUFFile, raised: list[tuple[str, int]], whole: bool) -> None:
    for key in gguf.kv:
        if key not in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges"):  # the tokenizer reads them
            with _noting(raised, gguf.path):
                gguf.kv[key]
    for info in gguf.tensors.values():
        assert info.data.size == info.nbytes
        if whole:
            assert int(info.data[0]) + int(info.data[-1]) >= 0  # both ends can be read
            drop_pages(info.data)
            if info.nbytes < 10_000:
                with _noting(raised, gguf.path):
                    dequantize(info)


def _inspect(gguf: GGUFFile, whole: bool) -> None:
    config = ModelConfig.from_gguf(gguf)
    types = {name: gguf.tensors[name].type for name in expected_tensors(config)}
    if whole:
        subject = Subject(config, types, str(gguf.path), None, None)
        facts = inspect.describe(subject, None, 2**30)
        json.dumps(facts, allow_nan=False)
        output = io.StringIO()
        inspect._print(subject, facts, Console(file=output, width=100))
        assert all(line.isprintable() for line in output.getvalue().splitlines())
    require_supported(config, gguf)


def _tokenize(gguf: GGUFFile, whole: bool) -> None:
    tokenizer = Tokenizer.from_gguf(gguf)
    ids = tokenizer.encode(_TEXT)
    assert all(0 <= token < len(tokenizer) for token in ids)
    tokenizer.chat_template()
    tokenizer.decode(range(len(tokenizer)) if whole else ids, skip_control=not whole)
