#!/usr/bin/env python3
"""The few edits that Caffe's source of August 2018 needs to build and start well on a current Debian.

    caffe_edits.py SOURCE_DIR

Each edit names one passage that must be in the file exactly once. An edit that the source already has
(Debian's source package has some of them) is left as it is; a passage found neither in its old nor in its
new form stops the build, because then this is not the Caffe that the edits were made for.
Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
import caffe_parallel


class Edit(NamedTuple):
    """One passage of one file: as it is, as it must be, and why."""

    file: str
    old: str
    new: str
    why: str


OPENCV4 = "OpenCV 4 moved the CV_LOAD_IMAGE_* constants that Caffe uses into this header"


def _opencv4_include(file: str, before: str, brackets: str) -> Edit:
    left, right = brackets[0], brackets[1]
    header = f"{left}opencv2/imgcodecs/legacy/constants_c.h{right}"
    guard = f"#if CV_MAJOR_VERSION >= 4\n#include {header}\n#endif\n"
    after = f"#include {left}opencv2/imgproc/imgproc.hpp{right}\n"
    return Edit(file, before + after, before + guard + after, OPENCV4)


CUDA_HEADER = "include/caffe/util/cuda_compatibility.h"
CUDA_CMAKE = "cmake/Cuda.cmake"
AS_TEXT = "versions were compared as text: CUDA 13 was older than 9, and cuDNN 10 than 3"
CUDA13 = "CUDA 13 dropped this field of cudaDeviceProp; only a GPU build reads it"
TEST_PLATFORM = "src/caffe/test/test_platform.cpp"
PYCAFFE_IO = "python/caffe/io.py"
LATER = "scikit-image and SciPy's ndimage take longer to import than all else, and only these two functions want them"
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
        "find_package(Boost 1.54 REQUIRED COMPONENTS system thread filesystem)",
        "find_package(Boost 1.54 REQUIRED COMPONENTS thread filesystem OPTIONAL_COMPONENTS system)",
        "Boost 1.89 dropped the library system, which had been empty since 1.69",
    ),
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
    Edit(
        CUDA_CMAKE,
        "    file(READ ${CUDNN_INCLUDE}/cudnn.h CUDNN_VERSION_FILE_CONTENTS)\n",
        "    if(EXISTS ${CUDNN_INCLUDE}/cudnn_version.h)\n"
        "      file(READ ${CUDNN_INCLUDE}/cudnn_version.h CUDNN_VERSION_FILE_CONTENTS)\n"
        "    else()\n"
        "      file(READ ${CUDNN_INCLUDE}/cudnn.h CUDNN_VERSION_FILE_CONTENTS) # before 8\n"
        "    endif()\n",
        "cuDNN 8 moved its version into a header of its own",
    ),
    Edit(
        CUDA_CMAKE,
        '    string(COMPARE LESS "${CUDNN_VERSION_MAJOR}" 3 cuDNNVersionIncompatible)\n'
        "    if(cuDNNVersionIncompatible)\n",
        '    if("${CUDNN_VERSION_MAJOR}" VERSION_LESS 3)\n',
        AS_TEXT,
    ),
    Edit(
        CUDA_CMAKE,
        '  string(COMPARE LESS "${CUDA_VERSION}" "9.0" iscudaolderthan90)\n'
        "  if(NOT iscudaolderthan90)\n"
        '    string(REPLACE "21(20)" "" __cuda_arch_bin "${__cuda_arch_bin}")\n'
        '    string(REPLACE "20" "" __cuda_arch_bin "${__cuda_arch_bin}")\n'
        "  endif()\n",
        '  if(NOT "${CUDA_VERSION}" VERSION_LESS 9.0 AND __cuda_arch_bin)\n'
        '    list(REMOVE_ITEM __cuda_arch_bin "21(20)" "20")\n'
        "  endif()\n",
        AS_TEXT + "; the 20 to leave out was also taken out of 120",
    ),
    Edit(
        CUDA_CMAKE,
        '      string(REPLACE "2.1" "2.1(2.0)" __nvcc_out "${__nvcc_out}")\n',
        '      string(REGEX REPLACE "(^| )2[.]1( |$)" "\\\\12.1(2.0)\\\\2" __nvcc_out "${__nvcc_out}")\n',
        "the 2.1 to look for was also found in 12.1",
    ),
    *[
        Edit(file, old, f"#if CUDART_VERSION < 13000\n{old}#endif\n", CUDA13)
        for file, old in (
            ("src/caffe/common.cpp", '  LOG(INFO) << "Clock rate:                    " << prop.clockRate;\n'),
            (
                "src/caffe/common.cpp",
                '  LOG(INFO) << "Concurrent copy and execution: "\n      << (prop.deviceOverlap ? "Yes" : "No");\n',
            ),
            (
                "src/caffe/common.cpp",
                '  LOG(INFO) << "Kernel execution timeout:      "\n'
                '      << (prop.kernelExecTimeoutEnabled ? "Yes" : "No");\n',
            ),
            (TEST_PLATFORM, '  printf("Clock rate:                    %d\\n", CAFFE_TEST_CUDA_PROP.clockRate);\n'),
            (
                TEST_PLATFORM,
                '  printf("Concurrent copy and execution: %s\\n",\n'
                '         (CAFFE_TEST_CUDA_PROP.deviceOverlap ? "Yes" : "No"));\n',
            ),
            (
                TEST_PLATFORM,
                '  printf("Kernel execution timeout:      %s\\n",\n'
                '         (CAFFE_TEST_CUDA_PROP.kernelExecTimeoutEnabled ? "Yes" : "No"));\n',
            ),
        )
    ],
    Edit(
        PYCAFFE_IO,
        "import numpy as np\nimport skimage.io\nfrom scipy.ndimage import zoom\nfrom skimage.transform import resize\n",
        "import numpy as np\n",
        LATER,
    ),
    Edit(
        PYCAFFE_IO,
        "    img = skimage.img_as_float(skimage.io.imread(filename, as_grey=not color))",
        "    import skimage.io\n    img = skimage.img_as_float(skimage.io.imread(filename, as_gray=not color))",
        LATER + "; as_grey is called as_gray now",
    ),
    Edit(
        PYCAFFE_IO,
        "            resized_std = resize(",
        "            from skimage.transform import resize\n            resized_std = resize(",
        LATER,
    ),
    Edit(
        PYCAFFE_IO,
        "        resized_im = zoom(",
        "        from scipy.ndimage import zoom\n        resized_im = zoom(",
        LATER,
    ),
    Edit(
        "python/caffe/_caffe.cpp",
        "BOOST_PYTHON_MODULE(_caffe) {\n",
        "BOOST_PYTHON_MODULE(_caffe) {\n  import_array1();\n",
        "Boost.Python 1.92 asks for NumPy's types while properties are added; Caffe loads NumPy after them",
    ),
    *(Edit(*parts) for parts in caffe_parallel.EDITS),
]


def apply_edits(source: Path, edits: Iterable[Edit] = EDITS) -> list[str]:
    """Apply every edit below ``source`` and return one line per edit; raise SystemExit when one does not fit."""
    lines = []
    for edit in edits:
        path = source / edit.file
        if not path.is_file():
            raise SystemExit(f"{path}: not there. {source} is not Caffe's source at 99bd99795.")
        text = path.read_text(encoding="utf-8")
        found = text.count(edit.old)
        if found == 1 and edit.old in edit.new and text.count(edit.new) == 1:
            found = 0  # the new form holds the old one
        if found == 1:
            path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")
            lines.append(f"edited  {edit.file}: {edit.why}")
        elif found == 0 and text.count(edit.new) == 1:
            lines.append(f"already {edit.file}: {edit.why}")
        else:
            raise SystemExit(
                f"{path}: the passage {edit.old.splitlines()[0]!r} was found {found} times, not once. "
                "This is not Caffe's source at 99bd99795; give that one with CAFFE_SOURCE."
            )
    return lines


def main(arguments: list[str]) -> None:
    """Apply the edits to a source folder, print them, and put our two headers into it."""
    if len(arguments) != 1:
        raise SystemExit(__doc__)
    source = Path(arguments[0])
    print("\n".join(apply_edits(source)))
    for name, place in (("caffe_parallel.hpp", caffe_parallel.HEADER), ("caffe_cuda.h", CUDA_HEADER)):
        shutil.copy(Path(__file__).parent / name, source / place)


if __name__ == "__main__":
    main(sys.argv[1:])
