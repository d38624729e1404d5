"""Measures isouq beside other libraries: the same model, weights, inputs and threads, in one run.

python -m benchmarks NAME [--preset smoke|full] [--out DIR]; see benchmarks/README.md.
"""
