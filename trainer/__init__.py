"""Trains Stable Diffusion models so that an interrupted run continues bit-exactly. Never imports gui."""
