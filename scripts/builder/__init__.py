"""Builds Caffe from source into the user's cache: what scripts/build_caffe.py is made of. Standard library only."""
