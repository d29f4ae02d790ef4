"""`latentvk generate`: continue a text, streamed; greedy choice stays on the device and repeats bit for bit."""

import argparse
import sys
from collections.abc import Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Any

from harness import options
from vkbackend.errors import DeviceLostError, InputError

if TYPE_CHECKING:
    from model.engine import Session
    from model.sampling import Sampler

HELP = "continue a text or answer a message, streamed"
EXAMPLE = 'latentvk generate -p "The history of" -n 48 --temp 0'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    add = parser.add_argument
    add("-p", "--prompt", required=True, metavar="TEXT", help="the text to continue ('-': read standard input)")
    add("-n", "--tokens", type=options.positive_int, default=128, metavar="N", help="at most this many (default 128)")
    add("--chat", action="store_true", help="put the text into the model's chat template as a user's message")
    add("--temp", type=float, default=0.0, metavar="T", help="0 (default): always the likeliest token, repeatable")
    add("--top-k", type=options.non_negative_int, default=0, metavar="K", help="keep the K likeliest (default 0: all)")
    add("--top-p", type=float, default=1.0, metavar="P", help="keep the best that reach P together (default 1: all)")
    add("--min-p", type=float, default=0.0, metavar="P", help="keep those with P of the best's probability (default 0)")
    add("--seed", type=options.non_negative_int, metavar="N", help="repeat a sampled text (default: a fresh one)")
    options.add_path(parser)
    options.add_chunk(parser)
    options.add_memory(parser)


def run(args: argparse.Namespace) -> int:
    from harness.running import load_model, open_file, open_session, warn_beyond_training
    from model.layout import get_path
    from model.sampling import Sampler, SamplingParams
    from model.tokenizer import Tokenizer
    from vkbackend.device import open_device

    path = get_path(args.path)
    params = SamplingParams(args.temp, args.top_k, args.top_p, args.min_p, args.seed)
    gguf, config = open_file(args)
    tokenizer = Tokenizer.from_gguf(gguf)
    prompt = prompt_tokens(tokenizer, args)
    n_ctx = len(prompt) + args.tokens
    warn_beyond_training(config, n_ctx)
    device = open_device(args.device, memory_fraction=args.memory_fraction)
    session = open_session(load_model(gguf, device, path, n_ctx, args.chunk), path, n_ctx, args.chunk)
    lost = None
    decoder = tokenizer.stream()
    show = _silent if options.json_to_stdout(args) else _write
    tokens, times, text = [], [], ""
    try:
        sampler = None if params.temperature == 0 else Sampler(params)
        started = perf_counter()
        for token in continuation(session, prompt, sampler):
            times.append(perf_counter() - started)
            if token in tokenizer.eog:
                break
            tokens.append(token)
            piece = decoder.add(token)
            show(piece)
            text += piece
            if len(tokens) == args.tokens:
                break
    except DeviceLostError as error:
        lost = error
    finally:
        session.close()
    piece = decoder.finish()
    show(piece + "\n")
    timing = _timing(len(prompt), times) if times else None
    if timing is not None:
        print(_timing_line(timing), file=sys.stderr)
    options.emit_json(
        args,
        {
            "path": path.name,
            "prompt_tokens": prompt,
            "tokens": tokens,
            "text": text + piece,
            "timing": timing,
            "incomplete": "" if lost is None else str(lost),
        },
    )
    if lost is not None:
        raise lost
    return 0


def prompt_tokens(tokenizer: Any, args: argparse.Namespace) -> list[int]:
    """The prompt's token ids. Raises InputError for an empty prompt, or --chat on a file without a template."""
    text = sys.stdin.read() if args.prompt == "-" else args.prompt
    if args.chat:
        text = tokenizer.apply_chat_template([{"role": "user", "content": text}])
    tokens: list[int] = tokenizer.encode(text)
    if not tokens:
        raise InputError("the prompt is empty, expected at least one token; give some text with -p")
    return tokens


def continuation(session: "Session", prompt: list[int], sampler: "Sampler | None") -> Iterator[int]:
    """Tokens after the prompt, without end. Without a sampler the device chooses, and logits never leave it."""
    if sampler is None:
        if len(prompt) > 1:
            session.prompt(prompt[:-1], "none")
        token = prompt[-1]
        while True:
            token = session.decode(token)
            yield token
    session.prompt(prompt, "last")
    while True:
        token = sampler(session.last_logits())
        yield token
        session.decode(token)


def _timing(n_prompt: int, times: list[float]) -> dict[str, Any]:
    """Seconds to the first token (prompt included), and tokens a second of those after it."""
    later = times[-1] - times[0]
    return {
        "prompt_tokens": n_prompt,
        "generated_tokens": len(times),
        "first_token_seconds": times[0],
        "decode_rate": (len(times) - 1) / later if later > 0 else None,
        "token_times_seconds": times,
    }


def _timing_line(timing: dict[str, Any]) -> str:
    from harness.units import rate_text, seconds_text

    rate = timing["decode_rate"]
    tail = f", then {rate_text(rate)} tok/s" if rate else ""
    return (
        f"{timing['prompt_tokens']} prompt tokens, first token after {seconds_text(timing['first_token_seconds'])}; "
        f"{timing['generated_tokens']} generated{tail}"
    )


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _silent(text: str) -> None:
    """Standard output belongs to --json."""
