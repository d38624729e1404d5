"""Write the summaries of question answering and traces as Markdown; compute nothing."""
