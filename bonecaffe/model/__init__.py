"""A trained model: net, weights, mean and preparation, from a run or from one file."""
