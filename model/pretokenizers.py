"""How text is cut into words before byte-pair merging: one list of patterns per ``tokenizer.ggml.pre``.

A pattern splits every piece it meets into its matches and the stretches between them; the next pattern works on those
pieces. The words are those of llama.cpp (src/llama-vocab.cpp and unicode.cpp), which differ in corners from the models'
own tokenizer.json files: contractions fold ASCII case alone, letters with and without case are told apart in ASCII
alone, and the character classes are those of Unicode 15.1. Syntax: Oniguruma, which the ``tokenizers`` library runs.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# What Unicode 16.0 added to 15.1 (DerivedAge.txt): Oniguruma knows these characters, llama.cpp's tables do not.
_UNICODE_16 = (
    "\u0897\u1b4e-\u1b4f\u1b7f\u1c89-\u1c8a\u2427-\u2429\u31e4-\u31e5\ua7cb-\ua7cd\ua7da-\ua7dc"
    "\U000105c0-\U000105f3\U00010d40-\U00010d65\U00010d69-\U00010d85\U00010d8e-\U00010d8f\U00010ec2-\U00010ec4"
    "\U00010efc\U00011380-\U00011389\U0001138b\U0001138e\U00011390-\U000113b5\U000113b7-\U000113c0\U000113c2"
    "\U000113c5\U000113c7-\U000113ca\U000113cc-\U000113d5\U000113d7-\U000113d8\U000113e1-\U000113e2"
    "\U000116d0-\U000116e3\U00011bc0-\U00011be1\U00011bf0-\U00011bf9\U00011f5a\U00013460-\U000143fa"
    "\U00016100-\U00016139\U00016d40-\U00016d79\U00018cff\U0001cc00-\U0001ccf9\U0001cd00-\U0001ceb3"
    "\U0001e5d0-\U0001e5fa\U0001e5ff\U0001f8b2-\U0001f8bb\U0001f8c0-\U0001f8c1\U0001fa89\U0001fa8f\U0001fabe"
    "\U0001fac6\U0001fadc\U0001fadf\U0001fae9\U0001fbcb-\U0001fbef"
)
_CLASS = re.compile(r"\\p\{[LMNPS]\}")


@dataclass(frozen=True)
class PreTokenizer:
    """``patterns`` in the order they apply, and what else llama.cpp ties to the name.

    ``ignore_merges``: a word that is a token stands for itself, whatever the merges give. ``add_bos``: where the file
    does not say. ``bos``: the id where the file names none. ``spaces``: words are UTF-8 with U+2581 for a space and
    unknown characters fall back to <0xXX> tokens, in place of GPT-2's printable characters for bytes.
    ``gemma4``: a run of line feeds that is a token stands for itself, and a text has its first token whatever the file
    says.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    bos: int | None = 11
    spaces: bool = False
    gemma4: bool = False


def _of(*patterns: str, **more: Any) -> PreTokenizer:
    as_of_15_1 = (_CLASS.sub(lambda match: f"[{match[0]}&&[^{_UNICODE_16}]]", pattern) for pattern in patterns)
    return PreTokenizer(tuple(as_of_15_1), **more)


_CONTRACTION = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"


def _llama3(numbers: str = r"\p{N}{1,3}", symbols: str = r" ?[^\s\p{L}\p{N}]+[\r\n]*", spaces: str = _SPACES) -> str:
    return rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{numbers}|{symbols}|{spaces}"


_QWEN2 = _llama3(r"\p{N}")

# Letters that are no ASCII letters of the other case: what llama.cpp makes of the Unicode classes Lu, Ll and the like.
_UPPER, _LOWER = r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]"


def _gpt4o(upper: str, lower: str, contraction: str = f"{_CONTRACTION}?", numbers: str = r"\p{N}{1,3}") -> str:
    lead = r"[^\r\n\p{L}\p{N}]?"
    words = f"{lead}{upper}*{lower}+{contraction}|{lead}{upper}+{lower}*{contraction}"
    return rf"{words}|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


_MARKED = r"[\p{L}\p{M}]"

# Three digits a word, counted from the right, and the first of them with the text before them: each run with that text,
# then what is over, then threes. The first pattern looks for no beginning within a text that has no number to come.
_DIGITS_FROM_THE_RIGHT = (
    r"(?<![^\p{N}])(?>[^\p{N}]*)\p{N}+",
    r"\A(?>[^\p{N}]*)\p{N}{1,3}(?=(?:\p{N}{3})*\z)",
    r"(?<![^\p{N}])\p{N}{3}",
)

# unicode.cpp's idea of Han: blocks, not the script.
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ebef\U0002f800-\U0002fa1f"
_KIMI_K2 = (
    rf"[{_HAN}]+|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}&&[^{_HAN}]]+{_CONTRACTION}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
)

# The cased letters of the scripts that DeepSeek-LLM's tokenizer knew of: no property names exactly this set.
_DEEPSEEK_LLM_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481"
    "\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b"
    "\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b"
    "\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943"
)
# llama.cpp sees white space beyond ASCII as a vertical tab in these patterns: no range takes it in.
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff&&[^\\s]]+"
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_DEEPSEEK_LLM_LETTERS}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3001-\u3002]+",
    r"\s+$",
    _CJK,
    r"\p{N}+",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")

_ASCII_MARK = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
_DEEPSEEK_V3_WORDS = rf"{_ASCII_MARK}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+"
_JAPANESE = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK_V3 = (r"\p{N}{1,3}", _JAPANESE, rf"{_DEEPSEEK_V3_WORDS}[\r\n]*|{_SPACES}")
_SPARK = (r"\p{N}{1,3}", _JAPANESE, rf"{_DEEPSEEK_V3_WORDS}|[\r\n]|\s+(?!\S)|\s+", r"\p{N}")
_AFMOE = (
    *_DIGITS_FROM_THE_RIGHT,
    "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f"
    "\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+",
    rf"{_DEEPSEEK_V3_WORDS}[\r\n]*|{_SPACES}",
)
# The third range of the CJK class begins at U+8C48, as llama.cpp has it, and so takes in Hangul and private use.

_SENTENCE_MARKS = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_YOUTU = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f"
    "\ufe30-\ufe4f]+|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    _gpt4o(_MARKED, _MARKED, numbers=r"\p{N}"),
)
_CHAMELEON = (
    "<sentinel:[0-9]+>",
    "IMGIMG[A-I]{1,4}Z",
    r"[\t\n]|    |  ",
    r"\p{N}",
    r"[\p{P}!-/:-@\[-`{-~]",
    _GPT2,
)
_JAIS2_SPACES = r"\s*[\r\n]+|" + "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4, "1,2"))
_MARKS = r"[\p{P}\$\+<=>\^~\|]+"

_DEFAULT = _of(_MARKS, _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")
_PLAIN_GPT2 = _of(_GPT2)
_SINGLE_DIGITS = _of(r"\p{N}", _GPT2)
_LLAMA3 = _of(_llama3(), ignore_merges=True, add_bos=True)
_GLM4 = _of(_llama3(), bos=None, ignore_merges=True)
_QWEN = _of(_QWEN2)
_GPT4O = _of(_gpt4o(_UPPER, _LOWER))
_GEMMA4 = _of(spaces=True, gemma4=True)
_TINY_AYA = _of(*_DIGITS_FROM_THE_RIGHT, _gpt4o(_MARKED, _MARKED))
_BAILING = _of(
    r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
)
_EXAONE_MOE = _of(
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
)
_QWEN35 = _of(
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)

_GROUPS: tuple[tuple[str, PreTokenizer], ...] = (
    ("default", _DEFAULT),
    (
        "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert jina-v1-en jina-v2-code "
        "roberta-bpe mpt olmo jais trillion granite-docling exaone4",
        _PLAIN_GPT2,
    ),
    ("starcoder refact command-r smollm codeshell exaone minerva-7b mellum2", _SINGLE_DIGITS),
    ("llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano", _LLAMA3),
    ("dbrx smaug-bpe", _of(_llama3())),
    ("chatglm-bpe", _of(_llama3(), bos=None)),
    ("glm4 glm5", _GLM4),
    ("deepseek-llm", _of(*_DEEPSEEK_LLM)),
    ("deepseek-coder", _of(*_DEEPSEEK_CODER)),
    ("deepseek-v3 hunyuan-dense joyai-llm hy_v4", _of(*_DEEPSEEK_V3)),
    ("spark2_5", _of(*_SPARK)),
    ("kimi-k2", _of(_KIMI_K2)),
    ("qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2", _QWEN),
    ("qwen35", _QWEN35),
    ("falcon", _of(r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    ("poro-chat bloom gpt3-finnish", _of(_SENTENCE_MARKS)),
    ("viking", _of(_SENTENCE_MARKS, r"\p{N}")),
    ("tekken", _of(_gpt4o(_UPPER, _LOWER, "", r"\p{N}"), ignore_merges=True, add_bos=True)),
    ("chameleon", _of(*_CHAMELEON, add_bos=True)),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", _GPT4O),
    ("granite-embed-multi-97m", _of(_gpt4o(r"[\p{L}\p{M}&&[^a-z]]", r"[\p{L}\p{M}&&[^A-Z]]"), ignore_merges=True)),
    ("tiny_aya cohere2moe", _TINY_AYA),
    ("youtu", _of(*_YOUTU, ignore_merges=True)),
    ("superbpe", _of(r"\p{N}+", "(?=(?:[0-9]{3})+(?![0-9]))")),
    ("bailingmoe bailingmoe2 llada-moe", _BAILING),
    ("seed-coder", _of(_llama3(r"\p{N}", r" ?[^\s\p{L}\p{N}\r\n]+"))),
    ("ufakzeka", _of(_QWEN2.removeprefix(f"{_CONTRACTION}|"))),
    ("afmoe", _of(*_AFMOE)),
    ("laguna", _of(r"[^\n]+|\n+", _QWEN2)),
    ("exaone-moe", _EXAONE_MOE),
    ("minicpm5", _of(r"\p{N}{1,3}", _llama3(r"\p{N}+"), ignore_merges=True)),
    ("jais-2", _of(_llama3(spaces=_JAIS2_SPACES + r"|\s"))),
    ("gemma4 granite-embed-multi-311m", _GEMMA4),
    ("sarvam-moe", _of(spaces=True)),
)

PRETOKENIZERS: Mapping[str, PreTokenizer] = {name: kind for names, kind in _GROUPS for name in names.split()}
