"""Write the numbers of an experiment as Markdown (summary.md)."""
