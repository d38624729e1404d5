"""Jobs, their store and the executors that run them."""
