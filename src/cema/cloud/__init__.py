"""The cloud: stores samples durably, adapts the models, signs and serves updates."""
