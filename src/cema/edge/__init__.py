"""The edge: predict, select, spool, upload, and swap in what the cloud sends back. Loads no torch."""
