"""Choose the questions, the models and the studies of every preset."""
