"""Compute the answers and the scores of one block of questions."""
