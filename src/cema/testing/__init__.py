"""Suites that a stranger runs on his own classes. They need pytest."""
