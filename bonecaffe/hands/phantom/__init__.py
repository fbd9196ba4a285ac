"""Synthetic hands with known age and points: our embedded data set, because RSNA's cannot be shipped.

`ossification` knows when each centre appears and fuses, `skeleton` where every bone lies, `render` what an X-ray
of it looks like, `dataset` how a folder of them is written in RSNA's layout.
"""
