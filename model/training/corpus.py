"""The training text: three public-domain works, read from the Debian packages that carry them.

    mkdir debs && cd debs && apt-get download dict-jargon dict-devil sword-text-web
    for deb in *.deb; do dpkg -x "$deb" ../corpus; done
    python -m model.training.corpus --root corpus --out run

(or install the three packages and leave `--root` at `/`). Writes `train.txt` and `heldout.txt.xz` into the folder given
by --out. The text is cut into blocks of about 2 KB at paragraph ends and the blocks are shuffled with a fixed seed, so
that any stretch of either file holds the same mixture.
"""

import argparse
import gzip
import lzma
import random
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

SEED = 20260
BLOCK_CHARS = 2048
HELDOUT_CHARS = 160_000

JARGON = "usr/share/dictd/jargon.dict.dz"
DEVIL = "usr/share/dictd/devil.dict.dz"
WEB_BIBLE = "usr/share/sword/modules/texts/ztext/engWEB2015eb"


def dictd_text(path: Path, encoding: str) -> str:
    """Text of a dictd database; a .dict.dz file is gzip with an index of blocks in an extra header field."""
    return gzip.decompress(path.read_bytes()).decode(encoding)


def jargon_entries(root: Path) -> Iterator[tuple[str, str]]:
    """Headword and definition of each Jargon File entry: headword in column 0, body indented, line breaks undone."""
    text = dictd_text(root / JARGON, "utf-8")
    start = text.index("\n1TBS\n")
    for entry in re.split(r"\n\n(?=\S)", text[start:].strip()):
        headword, _, body = entry.partition("\n")
        yield headword.strip(), unwrap(body)


def devil_entries(root: Path) -> Iterator[tuple[str, str]]:
    """Headword and definition of each Devil's Dictionary entry, `WORD, n.  Definition`, verse kept line by line."""
    text = dictd_text(root / DEVIL, "latin-1")
    start = text.index("ABASEMENT, n.")
    for entry in re.split(r"\n\n(?=[A-Z][A-Z' -]+[,.])", text[start:].strip()):
        headword = re.match(r"[A-Z' -]+", entry)
        if headword is not None:
            yield headword[0].strip().capitalize(), unwrap(entry)


def unwrap(body: str) -> str:
    """Join the wrapped lines of each paragraph; keep verse (told by its short lines) as lines."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", body.strip("\n")):
        lines = [line.strip() for line in paragraph.splitlines()]
        verse = len(lines) > 2 and sum(map(len, lines)) / len(lines) < 45
        paragraphs.append(("\n" if verse else " ").join(lines))
    return "\n".join(paragraphs)


def bible_paragraphs(root: Path) -> Iterator[str]:
    """Paragraphs of the World English Bible's SWORD module, its OSIS markup removed.

    A module part is zlib blocks (.bzz) with an index (.bzs) of little-endian (offset, size, unpacked size).
    """
    for part in ("ot", "nt"):
        index = (root / WEB_BIBLE / f"{part}.bzs").read_bytes()
        packed = (root / WEB_BIBLE / f"{part}.bzz").read_bytes()
        for offset, size, _ in struct.iter_unpack("<III", index):
            book = zlib.decompress(packed[offset : offset + size]).decode("utf-8")
            book = re.sub(r"<note\b.*?</note>|<title\b.*?</title>", "", book, flags=re.S)
            book = re.sub(r'<div[^>]*\bsID=[^>]*\btype="x-p"[^>]*>|<l\b[^>]*\bsID=[^>]*>', "\n", book)
            for paragraph in re.sub(r"<[^>]*>", "", book).split("\n"):
                clean = " ".join(paragraph.split())
                if clean:
                    yield clean


def blocks_of(paragraphs: Iterator[str]) -> list[str]:
    """Consecutive paragraphs gathered into blocks of at least BLOCK_CHARS characters."""
    blocks, held, size = [], [], 0
    for paragraph in paragraphs:
        held.append(paragraph)
        size += len(paragraph)
        if size >= BLOCK_CHARS:
            blocks.append("\n".join(held))
            held, size = [], 0
    return [*blocks, "\n".join(held)] if held else blocks


def read_corpus(root: Path) -> tuple[str, str]:
    """(training text, held-out text), disjoint by block, each a fixed shuffle of all three works."""
    typography = str.maketrans(
        {"\u201c": '"', "\u201d": '"', "\u2018": "'", "\u2019": "'", "\u2014": " -- ", "\u00a0": " ", "\t": " "}
    )
    sources = [
        (f"{headword}\n{body}\n" for headword, body in jargon_entries(root)),
        (f"{body}\n" for _, body in devil_entries(root)),
        bible_paragraphs(root),
    ]
    blocks = [block.translate(typography) for source in sources for block in blocks_of(source)]
    random.Random(SEED).shuffle(blocks)
    heldout: list[str] = []
    while sum(map(len, heldout)) < HELDOUT_CHARS:
        heldout.append(blocks.pop())
    return "\n".join(blocks), "\n".join(heldout)


def main() -> None:
    """Write train.txt and heldout.txt.xz."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("/"), help="folder the Debian packages are unpacked in")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    train, heldout = read_corpus(arguments.root)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "train.txt").write_text(train, encoding="utf-8")
    packed = lzma.compress(heldout.encode("utf-8"), preset=9 | lzma.PRESET_EXTREME)
    (arguments.out / "heldout.txt.xz").write_bytes(packed)
    print(f"train {len(train)} characters, held out {len(heldout)} characters ({len(packed)} bytes packed)")


if __name__ == "__main__":
    main()
