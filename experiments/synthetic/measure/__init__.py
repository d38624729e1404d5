"""Compute the result of one job."""
