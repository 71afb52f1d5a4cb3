"""Launching: starting a training somewhere, bringing back its events and its state, ending whatever still runs."""
