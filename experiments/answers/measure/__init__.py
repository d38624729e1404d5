"""Compute the answers, scores, judgements and traces of one block of questions."""
