"""Where Caffe's source calls caffe_parallel.hpp instead of its own loops: on all cores, in a build with OpenMP.

Without OpenMP (`FAST=0`) each of these passages compiles to what it was before. caffe_edits.py applies them; they have
its form: a file, the passage as it is, as it must be, and why.
"""

from __future__ import annotations

HEADER = "include/caffe/util/parallel.hpp"
"""Where caffe_parallel.hpp is put in Caffe's source."""

WHY = "on all cores, in a build with OpenMP; without it Caffe's own loop, unchanged"
INCLUDE = '#include "caffe/util/parallel.hpp"\n'
MATH = "src/caffe/util/math_functions.cpp"
VSL = "include/caffe/util/mkl_alternate.hpp"
CONVOLUTION = "src/caffe/layers/conv_layer.cpp"
POOLING = "src/caffe/layers/pooling_layer.cpp"
LRN = "src/caffe/layers/lrn_layer.cpp"
RELU = "src/caffe/layers/relu_layer.cpp"
PROGRAM = "tools/caffe.cpp"
PROGRAM_BUILD = "tools/CMakeLists.txt"


def _between(file: str, before: str, ours: str, after: str) -> tuple[str, str, str, str]:
    """Our lines between two consecutive passages of a file."""
    return (file, before + after, f"{before}#ifdef _OPENMP\n{ours}#endif\n{after}", WHY)


def _shared(file: str, count: str, loop: str) -> tuple[str, str, str, str]:
    """A loop of Caffe's whose iterations are independent, shared by the threads."""
    indent = loop[: len(loop) - len(loop.lstrip())]
    return (file, loop, f"{indent}OMP_MANY({count})\n{loop}", WHY)


def _included(file: str, after: str) -> tuple[str, str, str, str]:
    return (file, after, after + INCLUDE, WHY)


def _vsl(arguments: str, checks: str) -> tuple[str, str, str, str]:
    """One of the three macros that make Caffe's functions over many numbers (sqrt, pow, products, …)."""
    head = f"  void v##name(const int n, const Dtype* a, {arguments}Dtype* y) {{ \\\n    {checks} \\\n"
    return (VSL, head, head + "    OMP_MANY(n) \\\n", WHY)


BLAS = "".join(
    f"#define cblas_{letter}{name} parallel::{name}<{kind}>\n"
    for name in ("gemm", "gemv", "axpy", "scal", "axpby")
    for letter, kind in (("s", "float"), ("d", "double"))
)

GEOMETRY = """    if (this->num_spatial_axes_ == 2 && !this->force_nd_im2col_) {
      const parallel::Convolution geometry(this->num_, this->group_,
          this->channels_, this->num_output_,
          this->conv_input_shape_.cpu_data() + 1,
          this->kernel_shape_.cpu_data(), this->pad_.cpu_data(),
          this->stride_.cpu_data(), this->dilation_.cpu_data(),
          this->output_shape_);
"""

DIRECT = "`caffe train` is as fast by itself as when bonecaffe starts it; only in a build with OpenMP"

WAIT_BRIEFLY = """#ifdef BONECAFFE_WAIT_BRIEFLY
#include <sys/auxv.h>
#include <unistd.h>

#include <climits>
#include <cstdlib>

// Ours. On a busy machine, threads of OpenMP that wait must give their core
// away soon. libgomp reads how soon while it is loaded, before main, so the
// program starts itself once more with the variable set. Signals, open files
// and the process id stay as they are. If anything is missing (/proc, a place
// in the environment), it runs as it is. The second time the variable is
// set, so there is no third.
static void wait_briefly(char** argv) {
  if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY")) return;
  // Started through the dynamic loader, /proc/self/exe is the loader.
  if (getauxval(AT_BASE) == 0) return;
  char program[PATH_MAX];  // its path, because the process is named after it
  const ssize_t length = readlink("/proc/self/exe", program, PATH_MAX - 1);
  if (length <= 0 || setenv("GOMP_SPINCOUNT", "1000", 1) != 0) return;
  program[length] = '\\0';
  execv(program, argv);
  unsetenv("GOMP_SPINCOUNT");
}
#endif

"""
"""In front of `main`; the value is the one that bonecaffe/caffe/programs.py sets."""

EDITS = [
    (PROGRAM, "int main(int argc, char** argv) {\n", WAIT_BRIEFLY + "int main(int argc, char** argv) {\n", DIRECT),
    (
        PROGRAM,
        "  // Print output to stderr (while still logging).\n",
        "#ifdef BONECAFFE_WAIT_BRIEFLY\n  wait_briefly(argv);\n#endif\n"
        "  // Print output to stderr (while still logging).\n",
        DIRECT,
    ),
    (
        PROGRAM_BUILD,
        "    set_target_properties(${name} PROPERTIES OUTPUT_NAME caffe)\n",
        "    set_target_properties(${name} PROPERTIES OUTPUT_NAME caffe)\n"
        "    if(USE_OPENMP)\n"
        "      target_compile_definitions(${name} PRIVATE BONECAFFE_WAIT_BRIEFLY)\n"
        "    endif()\n",
        DIRECT,
    ),
    _included(VSL, "#include <math.h>\n\n"),
    _vsl("", "CHECK_GT(n, 0); CHECK(a); CHECK(y);"),
    _vsl("const Dtype b, ", "CHECK_GT(n, 0); CHECK(a); CHECK(y);"),
    _vsl("const Dtype* b, ", "CHECK_GT(n, 0); CHECK(a); CHECK(b); CHECK(y);"),
    _between(MATH, '#include "caffe/util/rng.hpp"\n\n', BLAS, "namespace caffe {\n"),
    _between(
        MATH,
        "  if (alpha == 0) {\n",
        "    parallel::zero(Y, sizeof(Dtype) * N);\n    return;\n",
        "    memset(Y, 0, sizeof(Dtype) * N);  // NOLINT(caffe/alt_fn)\n",
    ),
    _between(
        MATH,
        "    } else {\n",
        "      parallel::copy(Y, X, sizeof(Dtype) * N);\n      return;\n",
        "      memcpy(Y, X, sizeof(Dtype) * N);  // NOLINT(caffe/alt_fn)\n",
    ),
    _included(CONVOLUTION, '#include "caffe/layers/conv_layer.hpp"\n'),
    _between(
        CONVOLUTION,
        "    Dtype* top_data = top[i]->mutable_cpu_data();\n",
        GEOMETRY
        + """      parallel::convolve<Dtype>(geometry, bottom_data, weight,
          this->bias_term_ ? this->blobs_[1]->cpu_data() : NULL, top_data);
      continue;
    }
""",
        "    for (int n = 0; n < this->num_; ++n) {\n      this->forward_cpu_gemm(",
    ),
    _between(
        CONVOLUTION,
        "    Dtype* bottom_diff = bottom[i]->mutable_cpu_diff();\n",
        GEOMETRY
        + """      parallel::convolve_back<Dtype>(geometry, bottom_data, weight, top_diff,
          this->param_propagate_down_[0] ? weight_diff : NULL,
          this->bias_term_ && this->param_propagate_down_[1] ?
              this->blobs_[1]->mutable_cpu_diff() : NULL,
          propagate_down[i] ? bottom_diff : NULL);
      continue;
    }
""",
        "    // Bias gradient, if necessary.\n",
    ),
    _included(POOLING, '#include "caffe/layers/pooling_layer.hpp"\n'),
    _between(
        POOLING,
        "  case PoolingParameter_PoolMethod_MAX:\n",
        """    if (!use_top_mask) {
      parallel::max_pool<Dtype>(long(bottom[0]->num()) * channels_, height_,
          width_, pooled_height_, pooled_width_, kernel_h_, kernel_w_,
          stride_h_, stride_w_, pad_h_, pad_w_, Dtype(-FLT_MAX), bottom_data,
          top_data, max_idx_.mutable_cpu_data());
      break;
    }
""",
        "    // Initialize\n",
    ),
    _between(
        POOLING,
        "  case PoolingParameter_PoolMethod_MAX:\n",
        """    if (!use_top_mask) {
      parallel::max_pool_back<Dtype>(long(top[0]->num()) * channels_,
          height_ * width_, pooled_height_ * pooled_width_, top_diff,
          max_idx_.cpu_data(), bottom_diff);
      break;
    }
""",
        "    // The main loop\n",
    ),
    _included(LRN, '#include "caffe/layers/lrn_layer.hpp"\n'),
    _between(
        LRN,
        "  Dtype* scale_data = scale_.mutable_cpu_data();\n",
        """  parallel::lrn<Dtype>(num_, channels_, height_ * width_, size_, alpha_,
      beta_, k_, bottom_data, scale_data, top_data);
  return;
""",
        "  // start with the constant value\n",
    ),
    _between(
        LRN,
        "  Dtype* bottom_diff = bottom[0]->mutable_cpu_diff();\n",
        """  parallel::lrn_back<Dtype>(num_, channels_, height_ * width_, size_, alpha_,
      beta_, bottom_data, scale_data, top_data, top_diff, bottom_diff);
  return;
""",
        "  Blob<Dtype> padded_ratio(",
    ),
    _included(RELU, '#include "caffe/layers/relu_layer.hpp"\n'),
    _shared(RELU, "count", "  for (int i = 0; i < count; ++i) {\n    top_data[i]"),
    _shared(RELU, "count", "    for (int i = 0; i < count; ++i) {\n      bottom_diff[i]"),
]
