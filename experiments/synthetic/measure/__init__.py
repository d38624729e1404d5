"""Compute the result of one job: a posterior, or a study of it."""
