"""isouq against its peers: the same model, weights, inputs and threads, side by side in one run.

python -m benchmarks NAME [--preset smoke|full] [--out DIR]; see benchmarks/README.md.
"""
