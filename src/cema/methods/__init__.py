"""The rows of the benchmark: one method a file."""
