"""What the service learns with: the learner, its steps, its losses and its normalisation layers."""
