"""Draw the figures of question answering and traces; compute nothing."""
