"""Write the summaries of the experiments on texts as Markdown; compute nothing."""
