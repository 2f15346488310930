"""The configuration of a cloud that commands are tried on."""

from __future__ import annotations

CLOUD = """
data = "cloud"
signing_key = "signing.key"

[[cohort]]
name = "yard"
bundle = "bundle"
model = "digits-cnn"
foundation = "digits-cnn-foundation"
"""
