"""From a run to what others use: one model file with its model card, or the plain files of Caffe."""
