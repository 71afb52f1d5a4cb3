"""Training: the loop and what it stands on. It yields events and knows no notebook."""
