"""Builds Caffe from source into the user's cache: the parts of scripts/build_caffe.py. Standard library only."""
