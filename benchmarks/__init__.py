"""Time and memory of the library beside what else does the same work: `make bench`, or `python -m benchmarks.run`."""
