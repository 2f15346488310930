"""The HTTP process of the cloud. It loads no torch."""
