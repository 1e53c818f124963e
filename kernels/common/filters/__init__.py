"""Temperature, top-k, top-p and min-p of a row of logits, as transformers' warpers apply them, in that order."""
