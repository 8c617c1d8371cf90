"""The embedded suite: generated tasks and a small masked LM, which need neither network nor GPU."""

from importlib import resources
from pathlib import Path

MODEL = Path(str(resources.files(__name__))) / "model"
