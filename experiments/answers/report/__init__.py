"""Write the summaries of question answering and traces."""
