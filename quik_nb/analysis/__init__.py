"""What is asked after a training, or before it: reports, and the learning-rate finder."""
