"""Turn the results of the studies into the numbers of the tables and figures."""
