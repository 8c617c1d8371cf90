"""The models that are compared in every run, as records name them and as texts do."""

MODELS = {"pretrained": "pre-trained", "finetuned": "fine-tuned", "graft": "graft"}
