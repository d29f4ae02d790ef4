"""`latentvk generate`: continue a text or answer a message, streamed; untouched greedy choice stays on the device."""

import argparse
import sys
from time import perf_counter
from typing import TYPE_CHECKING, Any

from harness import options, prompts
from vkbackend.errors import DeviceLostError

if TYPE_CHECKING:
    from model.sampling import SamplingParams

HELP = "continue a text or answer a message, streamed"
EXAMPLE = 'latentvk generate -p "The history of" -n 48 --temp 0'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    prompts.add_arguments(parser)
    add = parser.add_argument
    add("-n", "--tokens", type=options.positive_int, default=128, metavar="N", help="at most this many (default 128)")
    add(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text, or at the control token of this name; may be repeated",
    )
    add("--ignore-eos", action="store_true", help="never choose a token that ends the text")
    _add_sampling(parser)
    options.add_path(parser)
    options.add_cache(parser)
    options.add_chunk(parser)
    options.add_memory(parser)


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("choosing the next token, in the order in which these act")
    add = group.add_argument
    add(
        "--logit-bias",
        action="append",
        default=[],
        type=_logit_bias,
        metavar="TOKEN(+|-)BIAS",
        help="make a token id likelier (5+1.5) or less likely (5-1), or forbid it (5-inf); may be repeated",
    )
    add(
        "--repeat-penalty", type=float, default=1.0, metavar="R", help="divide repeated tokens' logits (default 1: not)"
    )
    add("--presence-penalty", type=float, default=0.0, metavar="P", help="lower repeated tokens' logits (default 0)")
    add("--frequency-penalty", type=float, default=0.0, metavar="P", help="lower them for each repetition (default 0)")
    add(
        "--repeat-last-n",
        type=int,
        default=64,
        metavar="N",
        help="tokens that count as repeated, the prompt's included (default 64; 0: none, -1: all)",
    )
    add("--top-k", type=options.non_negative_int, default=0, metavar="K", help="keep the K likeliest (default 0: all)")
    add("--top-p", type=float, default=1.0, metavar="P", help="keep the best that reach P together (default 1: all)")
    add("--min-p", type=float, default=0.0, metavar="P", help="keep those with P of the best's probability (default 0)")
    add("--temp", type=float, default=0.0, metavar="T", help="0 (default): always the likeliest token, repeatable")
    add("--seed", type=options.non_negative_int, metavar="N", help="repeat a sampled text (default: a fresh one)")


def run(args: argparse.Namespace) -> int:
    from harness.running import load_model, open_file, open_session, warn_beyond_training
    from model.generate import StopStrings, continuation
    from model.layout import get_path
    from model.sampling import Sampler
    from model.tokenizer import Tokenizer
    from vkbackend.device import open_device

    path = get_path(args.path, args.cache)
    stops = StopStrings(args.stop)
    _sampling(args)  # what is wrong with it is said before the file is read
    gguf, config = open_file(args)
    tokenizer = Tokenizer.from_gguf(gguf)
    params = _sampling(args, tokenizer.eog if args.ignore_eos else ())
    sampler = None if params.on_device else Sampler(params, config.n_tokens)
    ends = tokenizer.eog | {token for stop in args.stop if (token := tokenizer.control_token(stop)) is not None}
    prompt = prompts.prompt_tokens(tokenizer, args)
    n_ctx = len(prompt) + args.tokens
    warn_beyond_training(config, n_ctx)
    device = open_device(args.device, memory_fraction=args.memory_fraction)
    session = open_session(load_model(gguf, config, device, path, n_ctx, args.chunk), path, n_ctx, args.chunk)
    lost, finish = None, "length"
    decoder = tokenizer.stream()
    show = _silent if options.json_to_stdout(args) else _write
    tokens, times, text = [], [], ""
    try:
        started = perf_counter()
        for token in continuation(session, prompt, sampler):
            times.append(perf_counter() - started)
            if token in ends:
                finish = "end"
                break
            tokens.append(token)
            piece = stops.add(decoder.add(token))
            show(piece)
            text += piece
            if stops.found:
                finish = "stop"
                break
            if len(tokens) == args.tokens:
                break
    except DeviceLostError as error:
        lost = error
    finally:
        session.close()
    piece = stops.add(decoder.finish()) + stops.finish()
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
            "finish": "lost" if lost is not None else finish,
            "timing": timing,
            "incomplete": "" if lost is None else str(lost),
        },
    )
    if lost is not None:
        raise lost
    return 0


def _sampling(args: argparse.Namespace, forbidden: Any = ()) -> "SamplingParams":
    """The options' values. Raises InputError for one that is out of range."""
    from model.sampling import SamplingParams

    bias: dict[int, float] = {}
    for token, value in args.logit_bias:
        bias[token] = bias.get(token, 0.0) + value
    bias |= dict.fromkeys(sorted(forbidden), float("-inf"))
    return SamplingParams(
        args.temp,
        args.top_k,
        args.top_p,
        args.min_p,
        args.seed,
        args.repeat_penalty,
        args.repeat_last_n,
        args.presence_penalty,
        args.frequency_penalty,
        bias,
    )


def _logit_bias(text: str) -> tuple[int, float]:
    """'15+1.5' -> (15, 1.5), '15-inf' -> (15, -inf)."""
    cut = next((i for i, c in enumerate(text) if c in "+-"), 0)
    try:
        if not (text[:cut].isascii() and text[:cut].isdigit()):
            raise ValueError
        return int(text[:cut]), float(text[cut:])
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"found '{text}', expected a token id, + or -, and a number, as in 15+1.5 or 15-inf"
        ) from None


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
