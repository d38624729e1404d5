"""Jobs, their store and what executes them; knows no experiment."""
