"""How the embedded model was made: corpus, tokenizer, PyTorch model, training, export, evaluation.

Nothing here is needed to run latentvk. It wants the optional extra `train` (PyTorch), and each file runs as
`python -m model.training.<name>`; `model/data/MODEL_CARD.md` gives the commands in order.
"""
