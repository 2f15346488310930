"""The demonstration: one cloud process and several edge processes on a stream that drifts."""
