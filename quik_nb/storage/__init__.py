"""Every byte on disk: weights, checkpoints, run folders, session files, and the locks on them."""
