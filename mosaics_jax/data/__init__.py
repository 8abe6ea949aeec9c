"""Text, tokens and batches: readers, tokenizers, token files, windows, and the built-in stories."""
