"""The ``tokenizer.ggml.*`` keys of a GGUF as one checked value, with what llama.cpp adds to them at load.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer. The defaults for absent keys and the tokens
that are known by their names are those of llama.cpp's src/llama-vocab.cpp, so that ids are the same; ``_END_CONTROL``
alone is added.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntFlag
from typing import Any

from vkbackend.errors import InputError, quoted

# What a file whose text cannot be read is good for all the same.
WITHOUT_TEXT = "use another GGUF, or `latentvk logits` and `bench`, which take token ids"
BPE_MODELS = ("gpt2", "gemma4")
SPM_MODEL = "llama"


class Kind(IntFlag):
    """What a token is: ``tokenizer.ggml.token_type`` 1 to 6 as bits, since a name may make a token a second thing."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 4
    USER_DEFINED = 8
    UNUSED = 16
    BYTE = 32


_TYPES = {number: Kind(1 << (number - 1)) for number in range(1, 7)}
HIDDEN = Kind.CONTROL | Kind.UNKNOWN  # not shown to a reader, and only recognised in text that is trusted
MARKED = HIDDEN | Kind.USER_DEFINED  # cut out of the text before it is split into words

# Tokens that end a generation wherever a vocabulary has them, the names of many families' files.
# fmt: off
_END_NAMES = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "[e~[",
)
# fmt: on
# GLM's request for a tool's answer ends a generation too; llama.cpp ends there only where a key of the file names it.
_END_CONTROL = "<|observation|>"
# Key of a role -> the names that take it in a file without the key. Roles of filling in the middle; the last three end
# a generation.
_FILL_NAMES = {
    "fim_pre": "<|fim_prefix|> <fim-prefix> <fim_prefix> <\uff5cfim\u2581begin\uff5c> <PRE> \u2581<PRE> "
    "<|code_prefix|> <|prefix|>",
    "fim_suf": "<|fim_suffix|> <fim-suffix> <fim_suffix> <\uff5cfim\u2581hole\uff5c> <SUF> \u2581<SUF> "
    "<|code_suffix|> <|suffix|>",
    "fim_mid": "<|fim_middle|> <fim-middle> <fim_middle> <\uff5cfim\u2581end\uff5c> <MID> \u2581<MID> "
    "<|code_middle|> <|middle|>",
    "fim_pad": "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]",
    "fim_rep": "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>",
    "fim_sep": "<|file_sep|>",
}
_OLD_KEYS = {"fim_pre": "prefix", "fim_suf": "suffix", "fim_mid": "middle"}
_FILL_ENDS = ("fim_pad", "fim_rep", "fim_sep")
_SHOWN_NAMES = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")


@dataclass(frozen=True)
class Vocabulary:
    """``tokens`` by id with their ``kinds`` and ``scores``; ``ids`` by text; ``bos`` and ``eos`` are ids or None.

    ``eog``: ids that end a generation. ``marked``: tokens cut out of the text, in the order in which it is searched for
    them. ``strip_before`` and ``strip_after``: ids of those that take the white space on that side too.
    """

    where: str
    tokens: list[str]
    ids: dict[str, int]
    kinds: list[Kind]
    scores: list[float]
    bos: int | None
    eos: int | None
    add_bos: bool
    add_eos: bool
    eog: frozenset[int]
    marked: tuple[int, ...]
    strip_before: frozenset[int]
    strip_after: frozenset[int]


class Keys:
    """The keys of one file, each with the error that names it."""

    def __init__(self, kv: Mapping[str, Any], where: str) -> None:
        self.kv = kv
        self.where = where

    def require(self, name: str) -> Any:
        key = f"tokenizer.ggml.{name}"
        if key not in self.kv:
            raise InputError(
                f"{self.where}: key {key} is missing, expected a vocabulary; convert the model again with its tokenizer"
            )
        return self.kv[key]

    def flag(self, name: str, absent: bool) -> bool:
        key = f"tokenizer.ggml.{name}"
        value = self.kv.get(key, absent)
        if not isinstance(value, bool):
            raise InputError(
                f"{self.where}: key {key} is {quoted(value)}, expected true or false; convert the model again"
            )
        return value

    def strings(self, name: str) -> list[str]:
        values = self.require(name)
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise InputError(
                f"{self.where}: key tokenizer.ggml.{name} is no list of strings, expected one; convert the model again"
            )
        return values

    def numbers(self, name: str, count: int, absent: float) -> list[Any]:
        """One number for each token, whole ones if ``absent`` is."""
        key = f"tokenizer.ggml.{name}"
        values = self.kv.get(key, [absent] * count)
        kinds, what = (int, "whole numbers") if isinstance(absent, int) else ((int, float), "numbers")
        if not isinstance(values, list) or not all(isinstance(value, kinds) for value in values[:1]):
            raise InputError(f"{self.where}: key {key} is no list of {what}, expected one; convert the model again")
        if len(values) != count:
            raise InputError(
                f"{self.where}: key {key} has {len(values)} entries, expected {count}, one for each token; "
                "convert the model again"
            )
        return values

    def token_id(self, name: str, count: int, absent: int | None = None) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        if key not in self.kv:
            return absent if absent is not None and absent < count else None
        value = self.kv[key]
        if type(value) is not int or not 0 <= value < count:
            raise InputError(
                f"{self.where}: key {key} is {quoted(value)}, expected an id from 0 to {count - 1}; "
                "convert the model again"
            )
        return value


def read_vocabulary(keys: Keys, bos: int | None, eos: int | None, add_bos: bool) -> Vocabulary:
    """The vocabulary; ``bos``, ``eos`` and ``add_bos`` hold where the file does not say.

    Raises InputError on a missing key, lists of different lengths, ids outside the vocabulary, a text that is two
    tokens'.
    """
    tokens = [text or f"[EMPTY_{i}]" for i, text in enumerate(keys.strings("tokens"))]
    ids = {text: i for i, text in enumerate(tokens)}
    if len(ids) != len(tokens):
        i = next(i for i, text in enumerate(tokens) if ids[text] != i)
        raise InputError(
            f"{keys.where}: key tokenizer.ggml.tokens has {quoted(tokens[i])} as token {i} and as token "
            f"{ids[tokens[i]]}, expected each text once; convert the model again"
        )
    n = len(tokens)
    kinds = [_TYPES.get(number, Kind.UNDEFINED) for number in keys.numbers("token_type", n, 1)]
    found_bos, found_eos = keys.token_id("bos", n, bos), keys.token_id("eos", n, eos)
    eog = _named(keys, ids, kinds)
    eog.update(token for token in (found_eos, keys.token_id("eot", n), keys.token_id("eom", n)) if token is not None)
    _exceptions(ids, kinds, eog)
    marked = [i for i, kind in enumerate(kinds) if kind & MARKED]
    # The longest first, in bytes: a shorter one is found in what they leave. Of equal ones the first; there llama.cpp's
    # order is its compiler's, and matters where two of one length overlap in a text.
    marked.sort(key=lambda i: -len(tokens[i].encode()))
    return Vocabulary(
        keys.where,
        tokens,
        ids,
        kinds,
        keys.numbers("scores", n, 0.0),
        found_bos,
        found_eos,
        keys.flag("add_bos_token", add_bos) and found_bos is not None,
        keys.flag("add_eos_token", False) and found_eos is not None,
        frozenset(eog),
        tuple(marked),
        *_strips(keys, ids, marked),
    )


def _named(keys: Keys, ids: dict[str, int], kinds: list[Kind]) -> set[int]:
    """Ids that end a generation by name. Makes the tokens of these names control tokens, whatever their type."""
    ends = {ids[name] for name in _END_NAMES if name in ids}
    control = set(ends)
    for role, names in _FILL_NAMES.items():
        token = keys.token_id(role, len(kinds))
        if token is None and role in _OLD_KEYS:
            token = keys.token_id(_OLD_KEYS[role], len(kinds))
        if token is None:
            # Of several names llama.cpp takes the one that its hash table has first.
            token = min((ids[name] for name in names.split() if name in ids), default=None)
            control.update(() if token is None else (token,))
        if role in _FILL_ENDS and token is not None:
            ends.add(token)
    for token in control:
        kinds[token] |= Kind.CONTROL
    if _END_CONTROL in ids and kinds[ids[_END_CONTROL]] & Kind.CONTROL:
        ends.add(ids[_END_CONTROL])
    return ends


def _exceptions(ids: dict[str, int], kinds: list[Kind], eog: set[int]) -> None:
    """Families whose tokens are not what their names say elsewhere."""
    for name in _SHOWN_NAMES:
        if name in ids:
            kinds[ids[name]] = Kind.USER_DEFINED
    ends = {name: ids[name] for name in ids.keys() & {*_END_NAMES, "<|plamo:eos|>"} if ids[name] in eog}
    harmony = "<|return|>" in ends and ("<|call|>" in ends or "<|calls|>" in ends)
    solar = "<|flush|>" in ends and ("<|call|>" in ends or "<|calls|>" in ends)
    if (harmony or solar) and "<|end|>" in ends:
        eog.discard(ends["<|end|>"])
        kinds[ends["<|end|>"]] = Kind.USER_DEFINED
    if ("<|tool_response>" in ends or "<|plamo:eos|>" in ends) and "</s>" in ends:
        eog.discard(ends["</s>"])
        kinds[ends["</s>"]] = Kind.NORMAL


def _strips(keys: Keys, ids: dict[str, int], marked: list[int]) -> tuple[frozenset[int], frozenset[int]]:
    """Ids that take the white space before them, and after them. GGUF has no key for it: families known by name."""
    name, pre = str(keys.kv.get("general.name", "")).lower(), str(keys.kv.get("tokenizer.ggml.pre", ""))
    before, after = set(), set()
    if any(known in pre for known in ("jina-v2-de", "jina-v2-es", "jina-v2-code")):
        before = {ids.get("<mask>")}
    elif "phi-3" in name or "phi3" in name:
        after = {*marked, ids.get("</s>")} - {ids.get(text) for text in ("<unk>", "<s>", "<|endoftext|>")}
    elif "modern-bert" in name:
        before = {ids.get("[MASK]")}
    return frozenset(i for i in before if i is not None), frozenset(i for i in after if i is not None)
