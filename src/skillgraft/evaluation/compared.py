"""The models that are compared in every run, as records name them and as texts do."""

from __future__ import annotations

MODELS = {"pretrained": "pre-trained", "finetuned": "fine-tuned", "graft": "graft"}
