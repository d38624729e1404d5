"""Published scores of answers: one function a score, and one table of the passes that each needs."""
