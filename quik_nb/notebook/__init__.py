"""What only IPython knows: the magics, and the text of a cell as a training step."""
