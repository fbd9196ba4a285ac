"""Studies in addition to the paper's: verify a run, list runs, repeat over seeds, sensitivity to the points."""
