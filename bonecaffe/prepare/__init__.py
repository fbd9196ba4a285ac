"""From hand to LMDB (paper II.1, figures 2 and 3)."""
