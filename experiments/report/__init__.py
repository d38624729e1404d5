"""Markdown tables and the files that every experiment writes."""
