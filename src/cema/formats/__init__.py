"""Every byte that leaves a process: the code of ``docs/protocol.md``."""
