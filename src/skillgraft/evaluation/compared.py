"""The three models that every run compares: their names in records, and their names in texts."""

from __future__ import annotations

MODELS = {"pretrained": "pre-trained", "finetuned": "fine-tuned", "graft": "graft"}
