"""The seven points found, no hand on it: two small Caffe nets, trained on phantoms, see the hand from afar and from near.

The first looks at the whole image and says roughly where the points are; the second looks at the hand alone, turned
upright, and says it again better. `frames` is what a net sees, `variation` what it learns from, `network` and
`training` how it learns, `locator` how the points are found, `stage` a folder of images.
"""
