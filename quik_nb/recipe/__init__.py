"""What to train: the parts and settings of a training as plain records, and whether they fit together."""
