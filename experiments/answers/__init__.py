"""Question answering and traces with a language model."""
