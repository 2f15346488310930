"""Which samples are worth sending: one rule a file."""
