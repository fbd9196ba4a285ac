"""The seven points out of other tools' files, and into them: VOC boxes, COCO keypoints, labelme, Label Studio, CVAT.

One module per tool turns a parsed file into `Hand`s and what was left out of it, each with a reason (``marks.py``).
``parsing.py`` finds out which tool wrote a file, ``names.py`` which image is meant, ``placing.py`` puts the points into
the pixels of the upright image, and ``importing.py`` does it for many files. An error in one hand costs no other hand.
"""

from bonecaffe.hands.formats.importing import Imported, read
from bonecaffe.hands.formats.marks import Hand, Kind, LeftOut, Reading, point_name

__all__ = ["Hand", "Imported", "Kind", "LeftOut", "Reading", "point_name", "read"]
