"""`specdec train`: the corpus, the tokenizer and the training loops of the shipped models and drafters."""
