"""Everything that knows Caffe: where it is, its programs, its nets, its file formats (paper II.2)."""
