"""Published weights, text encoder and tokenizer: found, checked and read."""
