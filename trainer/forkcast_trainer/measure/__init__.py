"""What is measured of a model in training, in our loop and in others', without a wait for its device."""
