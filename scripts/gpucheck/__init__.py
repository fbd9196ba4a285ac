"""What scripts/gpu_check.py is made of: a check of the GPU build that runs where nothing can be installed.

Standard library only, Python 3.8 or newer, nothing of bonecaffe: it must work next to an unpacked Caffe.
"""
