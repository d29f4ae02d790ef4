"""The embedded model and the held-out text it is scored on; MODEL_CARD.md tells where they come from."""

from pathlib import Path

EMBEDDED_MODEL = Path(__file__).parent / "latentvk-tiny.gguf"
HELDOUT_TEXT = Path(__file__).parent / "heldout.txt.xz"
