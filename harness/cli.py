"""The `latentvk` command: finds the command's module, parses, runs it and turns errors into one line and an exit code.

Exit codes: 0 done, 1 a check failed, 2 wrong usage or bad input, 3 the device cannot, 130 interrupted, 143 terminated.
A command's module has HELP (one line), EXAMPLE (works as pasted), add_arguments(parser) and run(args) -> exit code.
Only the module of the command that was asked for is imported, and modules import what is heavy inside run(), so that
commands without a device start fast and need no Vulkan.
"""

import argparse
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn, Protocol, cast

from harness import options
from vkbackend.errors import InputError, LatentvkError, printable

COMMANDS = (
    *("devices", "inspect", "synth", "tokenize", "generate", "logits"),
    *("compare", "bench", "diagnose", "regress", "report", "shaders"),
)
# Commands of two words; the first word's module only says what they are for.
GROUPS = {"shaders": ("check", "stats", "bench", "watch")}
INTERRUPTED = 130
TERMINATED = 143
BROKEN_PIPE = 141  # what a shell shows for a program ended by SIGPIPE


def every_command() -> list[str]:
    """Every command's one or two words."""
    return [name for word in COMMANDS for name in ([f"{word} {action}" for action in GROUPS.get(word, ())] or [word])]


class Command(Protocol):
    HELP: str
    EXAMPLE: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


class Parser(argparse.ArgumentParser):
    """argparse with this project's error line in place of the whole usage text."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see `{self.prog} --help`")


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised like SIGINT's exception so that temporary files are removed and buffers freed on the way out."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit code."""
    try:
        with _sigterm_raises():
            code = _dispatch(list(sys.argv[1:] if argv is None else argv))
            sys.stdout.flush()
            return code
    except LatentvkError as error:
        # One line is a promise to whoever reads logs: a file name or a driver's message may hold line breaks, or what
        # a terminal would act on.
        print("latentvk: error: " + printable(" ".join(str(error).split())), file=sys.stderr)
        return error.exit_code
    except Terminated:
        print("latentvk: terminated", file=sys.stderr)
        return TERMINATED
    except KeyboardInterrupt:
        print("latentvk: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes standard output once more at exit; that must not fail a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # Python sets signal handlers from the main thread only
        return

    def terminate(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        _print_overview()
        return 0 if argv else InputError.exit_code
    if argv[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"latentvk {version('latentvk')}")
        return 0
    if argv[0] not in COMMANDS:
        kind = "option" if argv[0].startswith("-") else "command"
        raise InputError(f"unknown {kind} '{argv[0]}', expected one of {', '.join(COMMANDS)}; see `latentvk --help`")
    words = 1
    if argv[0] in GROUPS:
        words = 2
        if len(argv) == 1 or argv[1] in ("-h", "--help"):
            _print_group(argv[0])
            return 0 if len(argv) > 1 else InputError.exit_code
        if argv[1] not in GROUPS[argv[0]]:
            expected = ", ".join(GROUPS[argv[0]])
            raise InputError(
                f"unknown command '{argv[0]} {argv[1]}', expected one of {expected}; see `latentvk {argv[0]} --help`"
            )
    name = " ".join(argv[:words])
    command = load(name)
    parser = build_parser(name, command)
    try:
        args = parser.parse_args(argv[words:])
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    options.check_json(args)
    return command.run(args)


def load(name: str) -> Command:
    """The module of a command's one or two words."""
    return cast(Command, importlib.import_module(f"harness.{name.replace(' ', '_')}"))


def build_parser(name: str, command: Command) -> Parser:
    parser = Parser(
        prog=f"latentvk {name}",
        description=command.HELP,
        epilog=f"example:\n  {command.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    options.add_common(parser)
    return parser


def _print_group(name: str) -> None:
    print(f"usage: latentvk {name} COMMAND ...\n")
    print(f"{load(name).HELP}\n")
    print("commands:")
    for action in GROUPS[name]:
        print(f"  {action:<10}{load(f'{name} {action}').HELP}")
    print(f"\n`latentvk {name} COMMAND --help` explains a command and shows an example.")


def _print_overview() -> None:
    print("usage: latentvk COMMAND ...\n")
    print("Multi-head Latent Attention models through Vulkan, and the numbers behind them.\n")
    print("commands:")
    for name in COMMANDS:
        print(f"  {name:<10}{load(name).HELP}")
    print(
        "\n`latentvk COMMAND --help` explains a command and shows an example. MODEL left out means the embedded model."
    )
    print("exit codes: 0 done, 1 a check failed, 2 wrong usage or bad input, 3 the device cannot")


if __name__ == "__main__":
    sys.exit(main())
