#!/usr/bin/env python3
"""The few edits that Caffe's source of August 2018 needs to build on a current Debian.

    caffe_edits.py SOURCE_DIR

Each edit names one passage that must stand in the file exactly once. An edit that the source
already has (Debian's source package carries some of them) is left as it is; a passage found
neither in its old nor in its new form stops the build, because then this is not the Caffe we know.
Standard library only: this runs before anything is installed.
"""

import sys
from pathlib import Path
from typing import NamedTuple


class Edit(NamedTuple):
    """One passage of one file: what stands there, what shall stand there, and why."""

    file: str
    old: str
    new: str
    why: str


OPENCV4 = "OpenCV 4 moved the CV_LOAD_IMAGE_* constants that Caffe uses into this header"


def _opencv4_include(file, before, brackets):
    left, right = brackets
    header = f"{left}opencv2/imgcodecs/legacy/constants_c.h{right}"
    guard = f"#if CV_MAJOR_VERSION >= 4\n#include {header}\n#endif\n"
    after = f"#include {left}opencv2/imgproc/imgproc.hpp{right}\n"
    return Edit(file, before + after, before + guard + after, OPENCV4)


HIGHGUI_C = "#include <opencv2/highgui/highgui_c.h>\n"

EDITS = [
    Edit(
        "src/caffe/util/io.cpp",
        "SetTotalBytesLimit(kProtoReadBytesLimit, 536870912)",
        "SetTotalBytesLimit(kProtoReadBytesLimit)",
        "protobuf 3.21 dropped the second argument (a threshold for a warning)",
    ),
    _opencv4_include("src/caffe/util/io.cpp", HIGHGUI_C, "<>"),
    _opencv4_include("src/caffe/test/test_io.cpp", HIGHGUI_C, "<>"),
    _opencv4_include("src/caffe/layers/window_data_layer.cpp", '#include "opencv2/highgui/highgui.hpp"\n', '""'),
    Edit(
        "cmake/Dependencies.cmake",
        """boost_py_version ${version} )
    find_package(Boost 1.46 COMPONENTS "python-py${boost_py_version}")
    set(Boost_PYTHON_FOUND ${Boost_PYTHON-PY${boost_py_version}_FOUND})

    while(""",
        """boost_py_version ${version} )
    find_package(Boost 1.46 COMPONENTS "python${boost_py_version}")
    set(Boost_PYTHON_FOUND ${Boost_PYTHON${boost_py_version}_FOUND})

    while(""",
        "Boost names its Python library python311 now, not python-py311",
    ),
    Edit(
        "cmake/Dependencies.cmake",
        """boost_py_version ${version} )
      find_package(Boost 1.46 COMPONENTS "python-py${boost_py_version}")
      set(Boost_PYTHON_FOUND ${Boost_PYTHON-PY${boost_py_version}_FOUND})
""",
        """boost_py_version ${version} )
      find_package(Boost 1.46 COMPONENTS "python${boost_py_version}")
      set(Boost_PYTHON_FOUND ${Boost_PYTHON${boost_py_version}_FOUND})
""",
        "the same name, where CMake tries shorter version numbers",
    ),
]


def apply_edits(source: Path, edits=EDITS) -> list[str]:
    """Apply every edit below ``source`` and return one line an edit; raise SystemExit when one does not fit."""
    said = []
    for edit in edits:
        path = source / edit.file
        if not path.is_file():
            raise SystemExit(f"{path}: not there. {source} is not Caffe's source at 99bd99795.")
        text = path.read_text(encoding="utf-8")
        found = text.count(edit.old)
        if found == 1:
            path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")
            said.append(f"edited  {edit.file}: {edit.why}")
        elif found == 0 and text.count(edit.new) == 1:
            said.append(f"already {edit.file}: {edit.why}")
        else:
            raise SystemExit(
                f"{path}: the passage {edit.old.splitlines()[0]!r} stands there {found} times, not once. "
                "This is not Caffe's source at 99bd99795; give that one with CAFFE_SOURCE."
            )
    return said


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    print("\n".join(apply_edits(Path(sys.argv[1]))))
