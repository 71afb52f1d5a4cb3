"""Launching: starting a training somewhere, bringing its events and its state home, ending whatever still runs."""
