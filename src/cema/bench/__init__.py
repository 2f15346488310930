"""The benchmark: every method on the same streams, with what it uploads counted.

:mod:`cema.bench.config` says what to measure, :mod:`cema.bench.protocols` in which order, and
:mod:`cema.bench.runner` does it. Results are compared by :mod:`cema.bench.compare`. Importing this package loads no
torch; running a benchmark does.
"""
