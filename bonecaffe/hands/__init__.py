"""The input: cases, reference points, images (paper II.1)."""
