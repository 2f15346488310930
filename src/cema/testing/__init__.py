"""Test suites for what you plug in: inherit one, say how to make yours, and run it with pytest."""
