"""Beside the paper: verify a run, list runs, repeat over seeds, sensitivity to the points."""
