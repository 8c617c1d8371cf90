"""The embedded suite: generated tasks and a tiny masked LM that need neither network nor GPU."""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
