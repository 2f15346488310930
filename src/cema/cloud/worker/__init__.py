"""The worker process of the cloud: learns from samples, publishes updates."""
