"""Time and memory of the library beside what else does the same work: `python -m benchmarks.run`, or `make bench`."""
