"""Turn answers, scores and judgements into the numbers of the tables and figures."""
