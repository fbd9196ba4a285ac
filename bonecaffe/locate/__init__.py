"""The seven points, found: two small Caffe nets, trained on phantoms, see the hand from afar and from near.

The first looks at the whole image and finds roughly where the points are; the second looks at the hand alone, turned
upright, and finds them more exactly. `frames` is what a net sees, `variation` what it learns from, `network` and
`learn` how it learns, `locator` how the points are found, `locate` a folder of images.
"""
