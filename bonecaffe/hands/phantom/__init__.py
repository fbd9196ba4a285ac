"""Synthetic hands with known age and points: the built-in data set, because RSNA's cannot be distributed.

`ossification` knows when each centre appears and fuses, `skeleton` where every bone is, `render` what an X-ray
of it looks like, `dataset` how a folder of them is written in RSNA's layout.
"""
