"""Find the seven points: two small Caffe nets, trained on phantoms, see the whole image and the hand close up.

The first looks at the whole image and finds the points roughly; the second looks only at the hand, turned upright, and
finds them more exactly. `frames` is what a net sees, `variation` what it learns from, `network` and `learn` how it
learns, `locator` how the points are found, `locate` a folder of images.
"""
