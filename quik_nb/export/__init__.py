"""Back to plain PyTorch: a session as a script."""
