"""Read and write the seven points in other tools' files: VOC boxes, COCO keypoints, labelme, Label Studio, CVAT.

One module per tool turns a parsed file into `Hand`s and what was left out of it, each with a reason (``marks.py``).
``parsing.py`` finds out which tool wrote a file, ``names.py`` which image is meant, ``placing.py`` converts the points
to pixels of the upright image, and ``importing.py`` does all this for many files. An error in one hand does not affect
the others.
"""

from bonecaffe.hands.formats.importing import Imported, read
from bonecaffe.hands.formats.marks import Hand, Kind, LeftOut, Reading, point_name

__all__ = ["Hand", "Imported", "Kind", "LeftOut", "Reading", "point_name", "read"]
