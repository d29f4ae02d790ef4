"""`latentvk logits`: the logits of every position of given tokens, in a file: how outsiders check us."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from harness import options
from vkbackend.errors import InputError

if TYPE_CHECKING:
    import numpy as np

HELP = "write the logits of every position of given token ids to an .npz file"
EXAMPLE = "latentvk logits --tokens 1,2,3 -o logits.npz"

_PIECE_BYTES = 256 * 2**20  # logits fetched from the device at once


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    add = parser.add_argument
    tokens = parser.add_mutually_exclusive_group(required=True)
    tokens.add_argument("--tokens", metavar="ID,...", help="token ids with commas between them")
    tokens.add_argument("--tokens-file", type=Path, metavar="FILE", help="token ids with commas, spaces or line breaks")
    options.add_path(parser)
    options.add_cache(parser)
    options.add_chunk(parser)
    options.add_memory(parser)
    add("-o", "--output", type=Path, required=True, metavar="FILE", help="gets 'tokens' [T] and 'logits' [T, V]")


def run(args: argparse.Namespace) -> int:
    import numpy as np

    from harness.atomic import replacing
    from harness.running import load_model, open_file, open_session, warn_beyond_training
    from harness.units import bytes_text
    from model.layout import get_path
    from vkbackend.device import open_device

    path = get_path(args.path, args.cache)
    gguf, config = open_file(args)
    tokens = read_tokens(args, config.n_vocab)
    warn_beyond_training(config, len(tokens))
    # The output file is opened before the work: a place that cannot be written is found out now.
    with replacing(args.output) as stream:
        device = open_device(args.device, memory_fraction=args.memory_fraction)
        model = load_model(gguf, config, device, path, len(tokens), args.chunk)
        session = open_session(model, path, len(tokens), args.chunk)
        try:
            logits = np.empty((len(tokens), config.n_vocab), np.float32)
            piece = session.chunk * max(1, _PIECE_BYTES // (4 * config.n_vocab * session.chunk))
            for start in range(0, len(tokens), piece):
                logits[start : start + piece] = session.prompt(tokens[start : start + piece].tolist(), "all")
        finally:
            session.close()
        np.savez(stream, tokens=tokens, logits=logits)
    summary = {"output": str(args.output), "path": path.name, "tokens": len(tokens), "n_vocab": config.n_vocab}
    options.emit_json(args, summary | {"logits_bytes": logits.nbytes})
    if not options.json_to_stdout(args):
        print(f"{args.output}: {len(tokens)} x {config.n_vocab} logits, {bytes_text(logits.nbytes)}")
    return 0


def read_tokens(args: argparse.Namespace, n_vocab: int) -> "np.ndarray":
    """int32 [T] from --tokens or --tokens-file. Raises InputError naming the first entry that is no token id."""
    import numpy as np

    if args.tokens is not None:
        where, text = "--tokens", args.tokens
    else:
        where = str(args.tokens_file)
        try:
            text = args.tokens_file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not text"
            raise InputError(f"{where}: cannot be read ({reason}), expected a file of token ids; check it") from None
    if not text.strip(", \t\r\n"):
        raise InputError(f"{where}: found no token ids, expected at least one; give them with commas between them")
    ids = []
    # A comma with spaces around it is one separator; two commas have an entry between them that is missing.
    for index, entry in enumerate(re.split(r"\s*,\s*|\s+", text.strip())):
        if not re.fullmatch(r"[0-9]{1,10}", entry) or int(entry) >= n_vocab:
            raise InputError(
                f"{where}: entry {index} is '{entry[:40]}', expected a token id from 0 to {n_vocab - 1}; correct it"
            )
        ids.append(int(entry))
    return np.array(ids, np.int32)
