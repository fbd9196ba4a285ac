// Caffe on all cores of a CPU. These loops of bonecaffe replace Caffe's own in a build with -DUSE_OPENMP=ON, at the places
// that caffe_parallel.py names. Same layers, same files, same arithmetic except the order of some sums.
//
// Caffe's own way is one image at a time through im2col and a BLAS that spreads each product over the cores; all between the
// products runs on one of them. Here each thread takes its share of the images with a buffer of its own, and BLAS runs
// within it on one thread. With fewer images than threads, the threads share the channels of an image instead.
//
// What comes out differently, and why:
//   - gradients of a convolution's weights and biases are summed within shares of the images, then over the shares: rounding;
//   - a product is cut in other places, and one with few rows is done by gemv: rounding;
//   - LRN with beta 0.75 takes 1 / (sqrt(s) sqrt(sqrt(s))) for pow(s, -0.75): the last digit.
// All of it depends on the number of threads (OMP_NUM_THREADS; all cores, when it is not set), not on which is the faster, so
// that the same training on the same machine gives the same model to the byte.
#ifndef BONECAFFE_CAFFE_PARALLEL_HPP_
#define BONECAFFE_CAFFE_PARALLEL_HPP_
#ifdef _OPENMP

#include <omp.h>
#include <pthread.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

extern "C" {
#include <cblas.h>
// OpenBLAS only; other libraries go without.
void openblas_set_num_threads(int) __attribute__((weak));
int openblas_get_num_threads(void) __attribute__((weak));
int openblas_get_parallel(void) __attribute__((weak));
}

namespace caffe {
namespace parallel {

// ---- threads ---------------------------------------------------------------------------------------------------

const long kSmall = 1 << 15;  // elements that one thread is through with before a second has woken up

inline bool& forked() {
  static bool value = false;
  return value;
}

// How many threads for this many pieces of work. One inside one of these threads, and in a forked process, where OpenMP's
// threads are gone without its knowing.
inline int threads(long pieces) {
  static const int watching = pthread_atfork(NULL, NULL, []() { forked() = true; });
  (void)watching;
  if (omp_in_parallel() || forked()) return 1;
  return static_cast<int>(std::max(1L, std::min<long>(pieces, omp_get_max_threads())));
}

// BLAS on one thread, from here on: its callers are what runs in parallel. An OpenBLAS that is built on OpenMP itself (2) does so
// within a parallel region unasked, and would put all of OpenMP on one thread if it were asked.
inline void blas_on_one_thread() {
  if (openblas_get_parallel && openblas_get_parallel() == 2) return;
  if (openblas_set_num_threads && openblas_get_num_threads && openblas_get_num_threads() != 1) openblas_set_num_threads(1);
}

// Calls work(first, last) for shares of 0 … pieces, four a thread: who is done takes the next, because cores are not alike, or
// have other work too. Where the shares begin depends on the number of threads alone.
template <typename Work>
inline void share(long pieces, int count, const Work& work) {
  if (count <= 1) {
    work(0L, pieces);
    return;
  }
  blas_on_one_thread();
  const long shares = std::min<long>(pieces, 4 * count);
#pragma omp parallel for schedule(dynamic) num_threads(count)
  for (long i = 0; i < shares; ++i) work(pieces * i / shares, pieces * (i + 1) / shares);
}

// A loop over many numbers, for Caffe's own loops: OMP_MANY(n) before `for`.
#define BONECAFFE_PRAGMA(text) _Pragma(#text)
#define OMP_MANY(n) BONECAFFE_PRAGMA(omp parallel for num_threads(caffe::parallel::threads((n) / caffe::parallel::kSmall)) schedule(dynamic, caffe::parallel::kSmall / 2))

// A buffer of this thread's own that is kept for the next call.
template <typename Dtype, int which>
inline Dtype* buffer(size_t size) {
  static thread_local std::vector<Dtype> kept;
  if (kept.size() < size) kept.resize(size);
  return kept.data();
}

// ---- BLAS ------------------------------------------------------------------------------------------------------

#define BONECAFFE_BLAS(name, plain) \
  template <typename... A> inline void name(float, A... a) { cblas_s##plain(a...); } \
  template <typename... A> inline void name(double, A... a) { cblas_d##plain(a...); }
BONECAFFE_BLAS(call_gemm, gemm)
BONECAFFE_BLAS(call_gemv, gemv)
BONECAFFE_BLAS(call_axpy, axpy)
BONECAFFE_BLAS(call_scal, scal)
BONECAFFE_BLAS(call_axpby, axpby)
#undef BONECAFFE_BLAS

// y = alpha A x + beta y with A of rows x columns, or its transpose; the elements of y are shared.
template <typename Dtype>
inline void gemv(CBLAS_ORDER order, CBLAS_TRANSPOSE trans, int rows, int columns, Dtype alpha, const Dtype* a, int lda,
                 const Dtype* x, int incx, Dtype beta, Dtype* y, int incy) {
  const bool plain = trans == CblasNoTrans;
  if (beta == Dtype(0)) {  // what stands in y may be no number
    for (int i = 0; i < (plain ? rows : columns); ++i) y[long(i) * incy] = 0;
    beta = 1;
  }
  share(plain ? rows : columns, threads(long(rows) * columns / kSmall), [&](long first, long last) {
    const int n = static_cast<int>(last - first);
    if (n <= 0) return;
    call_gemv(Dtype(), order, trans, plain ? n : rows, plain ? columns : n, alpha, a + first * (plain ? lda : 1), lda, x, incx,
              beta, y + first * incy, incy);
  });
}

// C = alpha op(A) op(B) + beta C, row-major; the rows or the columns of C are shared.
template <typename Dtype>
inline void gemm(CBLAS_ORDER order, CBLAS_TRANSPOSE ta, CBLAS_TRANSPOSE tb, int m, int n, int k, Dtype alpha, const Dtype* a,
                 int lda, const Dtype* b, int ldb, Dtype beta, Dtype* c, int ldc) {
  if (m <= 8 && k > 1 && ta == CblasNoTrans && tb == CblasTrans) {  // a few images through a full layer: its weights are read once
    share((n + 15) / 16, threads(long(n) * k / kSmall), [&](long first, long last) {
      for (int from = static_cast<int>(first) * 16; from < std::min<long>(last * 16, n); from += 16) {
        for (int row = 0; row < m; ++row) {
          gemv(order, CblasNoTrans, std::min(16, n - from), k, alpha, b + long(from) * ldb, ldb, a + long(row) * lda, 1, beta,
               c + long(row) * ldc + from, 1);
        }
      }
    });
    return;
  }
  const int count = threads(long(m) * n * k / (64 * kSmall));
  if (count == 1) {
    call_gemm(Dtype(), order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    return;
  }
  const bool rows = m > n / 4;  // rows of C are contiguous; columns only of a low and wide one
  share(((rows ? m : n) + 15) / 16, count, [&](long first, long last) {
    const long from = first * 16, to = std::min<long>(last * 16, rows ? m : n);
    if (to <= from) return;
    const int part = static_cast<int>(to - from);
    if (rows) {
      call_gemm(Dtype(), order, ta, tb, part, n, k, alpha, a + from * (ta == CblasNoTrans ? lda : 1), lda, b, ldb, beta,
                c + from * ldc, ldc);
    } else {
      call_gemm(Dtype(), order, ta, tb, m, part, k, alpha, a, lda, b + from * (tb == CblasNoTrans ? 1 : ldb), ldb, beta,
                c + from, ldc);
    }
  });
}

template <typename Dtype>
inline void axpy(int n, Dtype alpha, const Dtype* x, int, Dtype* y, int) {
  share(n, threads(n / kSmall), [&](long first, long last) {
    call_axpy(Dtype(), static_cast<int>(last - first), alpha, x + first, 1, y + first, 1);
  });
}

template <typename Dtype>
inline void scal(int n, Dtype alpha, Dtype* x, int) {
  share(n, threads(n / kSmall), [&](long first, long last) {
    call_scal(Dtype(), static_cast<int>(last - first), alpha, x + first, 1);
  });
}

template <typename Dtype>
inline void axpby(int n, Dtype alpha, const Dtype* x, int, Dtype beta, Dtype* y, int) {
  share(n, threads(n / kSmall), [&](long first, long last) {
    call_axpby(Dtype(), static_cast<int>(last - first), alpha, x + first, 1, beta, y + first, 1);
  });
}

inline void copy(void* to, const void* from, size_t bytes) {
  share(bytes, threads(bytes / (4 * kSmall)), [&](long first, long last) {
    memcpy(static_cast<char*>(to) + first, static_cast<const char*>(from) + first, last - first);
  });
}

inline void zero(void* to, size_t bytes) {
  share(bytes, threads(bytes / (4 * kSmall)), [&](long first, long last) {
    memset(static_cast<char*>(to) + first, 0, last - first);
  });
}

// ---- convolution in two dimensions -------------------------------------------------------------------------------

struct Convolution {
  int images, groups, channels, outputs;
  int height, width, kernel_h, kernel_w, pad_h, pad_w, stride_h, stride_w, step_h, step_w, out_h, out_w;

  Convolution(int images, int groups, int channels, int outputs, const int* input, const int* kernel, const int* pad,
              const int* stride, const int* dilation, const std::vector<int>& output)
      : images(images), groups(groups), channels(channels), outputs(outputs), height(input[0]), width(input[1]),
        kernel_h(kernel[0]), kernel_w(kernel[1]), pad_h(pad[0]), pad_w(pad[1]), stride_h(stride[0]), stride_w(stride[1]),
        step_h(dilation[0]), step_w(dilation[1]), out_h(output[0]), out_w(output[1]) {}

  bool pointwise() const { return kernel_h * kernel_w * stride_h * stride_w == 1 && pad_h == 0 && pad_w == 0; }
  long input() const { return long(channels) * height * width; }            // elements of an image
  long output() const { return long(outputs) * area(); }                    // elements of what becomes of it
  int area() const { return out_h * out_w; }
  int rows() const { return channels / groups * kernel_h * kernel_w; }      // of a group's columns
  long columns() const { return long(groups) * rows() * area(); }           // elements of an image's columns
  long weights() const { return long(outputs) * rows(); }

  // Calls row(image row, columns' row, first valid, last valid, offset) for each row of the columns of some channels, where
  // output column w stands for image column w * stride_w + offset; an image row outside the image is -1.
  template <typename Row>
  void each_row(int first, int last, const Row& row) const {
    for (int channel = first; channel < last; ++channel) {
      for (int y = 0; y < kernel_h; ++y) {
        for (int x = 0; x < kernel_w; ++x) {
          const int offset = x * step_w - pad_w;
          const int from = std::min(out_w, offset < 0 ? (-offset + stride_w - 1) / stride_w : 0);
          const int to = offset >= width ? from : std::max(from, std::min(out_w, (width - 1 - offset) / stride_w + 1));
          const long start = ((long(channel) * kernel_h + y) * kernel_w + x) * area();
          for (int h = 0; h < out_h; ++h) {
            const int image_row = h * stride_h - pad_h + y * step_h;
            const bool inside = image_row >= 0 && image_row < height;
            row(inside ? long(channel) * height + image_row : -1L, start + long(h) * out_w, from, to, offset);
          }
        }
      }
    }
  }
};

template <typename Dtype>
inline void im2col(const Convolution& c, const Dtype* image, int first, int last, Dtype* columns) {
  const int stride = c.stride_w, out_w = c.out_w, width = c.width;
  c.each_row(first, last, [=](long image_row, long start, int from, int to, int offset) {
    Dtype* out = columns + start;
    if (image_row < 0) {
      for (int w = 0; w < out_w; ++w) out[w] = 0;
      return;
    }
    const Dtype* in = image + image_row * width + offset;
    for (int w = 0; w < from; ++w) out[w] = 0;
    if (stride == 1) {
      for (int w = from; w < to; ++w) out[w] = in[w];
    } else {
      for (int w = from; w < to; ++w) out[w] = in[w * stride];
    }
    for (int w = to; w < out_w; ++w) out[w] = 0;
  });
}

template <typename Dtype>
inline void col2im(const Convolution& c, const Dtype* columns, int first, int last, Dtype* image) {
  const int stride = c.stride_w, width = c.width;
  const long plane = long(c.height) * width;
  std::fill(image + first * plane, image + last * plane, Dtype(0));
  c.each_row(first, last, [=](long image_row, long start, int from, int to, int offset) {
    if (image_row < 0) return;
    const Dtype* in = columns + start;
    Dtype* out = image + image_row * width + offset;
    if (stride == 1) {
#pragma omp simd
      for (int w = from; w < to; ++w) out[w] += in[w];
    } else {
      for (int w = from; w < to; ++w) out[w * stride] += in[w];
    }
  });
}

// The columns of an image, by this thread or, when it is alone, by all of them.
template <typename Dtype>
inline const Dtype* columns_of(const Convolution& c, const Dtype* image) {
  if (c.pointwise()) return image;
  Dtype* columns = buffer<Dtype, 0>(c.columns());
  share(c.channels, threads(c.channels), [&](long first, long last) {
    im2col(c, image, static_cast<int>(first), static_cast<int>(last), columns);
  });
  return columns;
}

// How many threads share the images: all, or one when there are fewer images than that.
inline int image_threads(const Convolution& c) {
  const int count = threads(omp_get_max_threads());
  return c.images < count ? 1 : count;
}

// output = weights * columns of the input + bias; bias may be NULL.
template <typename Dtype>
inline void convolve(const Convolution& c, const Dtype* input, const Dtype* weights, const Dtype* bias, Dtype* output) {
  const int m = c.outputs / c.groups, area = c.area(), k = c.rows();
  share(c.images, image_threads(c), [&](long first, long last) {
    for (long image = first; image < last; ++image) {
      const Dtype* columns = columns_of(c, input + image * c.input());
      Dtype* out = output + image * c.output();
      for (int g = 0; g < c.groups; ++g) {
        gemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m, area, k, Dtype(1), weights + long(g) * m * k, k,
             columns + long(g) * k * area, area, Dtype(0), out + long(g) * m * area, area);
      }
      for (int o = 0; bias && o < c.outputs; ++o) {
        for (int i = 0; i < area; ++i) out[long(o) * area + i] += bias[o];
      }
    }
  });
}

// Adds to the gradients of weights and bias and sets that of the input; NULL: not needed. The images are taken in parts.
// Each part has sums of its own; when all are done, they are added in order.
template <typename Dtype>
inline void convolve_back(const Convolution& c, const Dtype* input, const Dtype* weights, const Dtype* output_diff,
                          Dtype* weight_diff, Dtype* bias_diff, Dtype* input_diff) {
  const int m = c.outputs / c.groups, area = c.area(), k = c.rows(), count = image_threads(c);
  const long parts = count == 1 ? 1 : std::min(c.images, std::max(count, std::min(4 * count, 32)));
  const long of_part = c.weights() + c.outputs;
  Dtype* sums = buffer<Dtype, 1>((parts - 1) * of_part);
  const auto do_image = [&](long image, Dtype* weight_sum, Dtype* bias_sum, bool first) {
    const Dtype* out = output_diff + image * c.output();
    for (int o = 0; bias_diff && o < c.outputs; ++o) {
      Dtype sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int i = 0; i < area; ++i) sum += out[long(o) * area + i];
      bias_sum[o] = first ? sum : bias_sum[o] + sum;
    }
    if (weight_diff) {
      const Dtype* columns = columns_of(c, input + image * c.input());
      for (int g = 0; g < c.groups; ++g) {
        gemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, k, area, Dtype(1), out + long(g) * m * area, area,
             columns + long(g) * k * area, area, Dtype(!first), weight_sum + long(g) * m * k, k);
      }
    }
    if (input_diff) {
      Dtype* image_diff = input_diff + image * c.input();
      Dtype* columns = c.pointwise() ? image_diff : buffer<Dtype, 0>(c.columns());
      for (int g = 0; g < c.groups; ++g) {
        gemm(CblasRowMajor, CblasTrans, CblasNoTrans, k, area, m, Dtype(1), weights + long(g) * m * k, k,
             out + long(g) * m * area, area, Dtype(0), columns + long(g) * k * area, area);
      }
      if (!c.pointwise()) {
        share(c.channels, threads(c.channels), [&](long from, long to) {
          col2im(c, columns, static_cast<int>(from), static_cast<int>(to), image_diff);
        });
      }
    }
  };
  share(parts, count, [&](long first, long last) {
    for (long part = first; part < last; ++part) {
      Dtype* own = part == 0 ? NULL : sums + (part - 1) * of_part;
      const long begin = c.images * part / parts, end = c.images * (part + 1) / parts;
      for (long image = begin; image < end; ++image) {
        do_image(image, own ? own : weight_diff, own ? own + c.weights() : bias_diff, own && image == begin);
      }
    }
  });
  const auto add = [&](Dtype* to, long start, long size) {
    share(size, threads(size / kSmall), [&](long first, long last) {
      for (long part = 0; part < parts - 1; ++part) {
        const Dtype* from = sums + part * of_part + start;
        for (long i = first; i < last; ++i) to[i] += from[i];
      }
    });
  };
  if (weight_diff) add(weight_diff, 0, c.weights());
  if (bias_diff) add(bias_diff, c.weights(), c.outputs);
}

// ---- max pooling -------------------------------------------------------------------------------------------------

// The largest of each window and where it stands in its plane; -1 and -FLT_MAX for a window without a number.
template <typename Dtype>
inline void max_pool(long planes, int height, int width, int out_h, int out_w, int kernel_h, int kernel_w, int stride_h,
                     int stride_w, int pad_h, int pad_w, Dtype lowest, const Dtype* input, Dtype* output, int* where) {
  share(planes, threads(planes), [=](long first, long last) {
    for (long plane = first; plane < last; ++plane) {
      const Dtype* in = input + plane * height * width;
      long at = plane * out_h * out_w;
      for (int y = 0; y < out_h; ++y) {
        const int top = std::max(y * stride_h - pad_h, 0), bottom = std::min(y * stride_h - pad_h + kernel_h, height);
        for (int x = 0; x < out_w; ++x, ++at) {
          const int left = std::max(x * stride_w - pad_w, 0), right = std::min(x * stride_w - pad_w + kernel_w, width);
          Dtype best = lowest;
          int found = -1;
          for (int h = top; h < bottom; ++h) {
            for (int w = left; w < right; ++w) {
              const bool more = in[h * width + w] > best;
              best = more ? in[h * width + w] : best;
              found = more ? h * width + w : found;
            }
          }
          output[at] = best;
          where[at] = found;
        }
      }
    }
  });
}

// The gradient of each window is added where its largest stood.
template <typename Dtype>
inline void max_pool_back(long planes, int in_area, int out_area, const Dtype* output_diff, const int* where, Dtype* input_diff) {
  share(planes, threads(planes), [=](long first, long last) {
    for (long plane = first; plane < last; ++plane) {
      for (long i = plane * out_area; i < (plane + 1) * out_area; ++i) {
        if (where[i] >= 0) input_diff[plane * in_area + where[i]] += output_diff[i];
      }
    }
  });
}

// ---- local response normalization across channels -----------------------------------------------------------------

const int kBlock = 512;  // numbers of a plane taken at once, so that a window of channels stays near

template <typename Dtype>
inline Dtype to_minus(Dtype s, Dtype beta) {
  return beta == Dtype(0.75) ? 1 / (std::sqrt(s) * std::sqrt(std::sqrt(s))) : std::pow(s, -beta);
}

// Calls work(start, size, channel stride) for blocks of the planes of all images.
template <typename Work>
inline void each_block(int images, int channels, int area, const Work& work) {
  const int blocks = (area + kBlock - 1) / kBlock;
  share(long(images) * blocks, threads(long(images) * blocks), [&](long first, long last) {
    for (long i = first; i < last; ++i) {
      const int block = i % blocks;
      work(i / blocks * channels * area + long(block) * kBlock, std::min(kBlock, area - block * kBlock));
    }
  });
}

// scale = k + alpha/size * (sum of squares over `size` channels), output = input * scale^-beta.
template <typename Dtype>
inline void lrn(int images, int channels, int area, int size, Dtype alpha, Dtype beta, Dtype k, const Dtype* input,
                Dtype* scale, Dtype* output) {
  const int ahead = (size - 1) / 2;
  const Dtype share_of = alpha / size;
  each_block(images, channels, area, [=](long start, int n) {
    Dtype sum[kBlock];
    for (int i = 0; i < n; ++i) sum[i] = k;
    const auto add = [&](int channel, Dtype factor) {
      if (channel < 0 || channel >= channels) return;
      const Dtype* x = input + start + long(channel) * area;
      for (int i = 0; i < n; ++i) sum[i] += factor * (x[i] * x[i]);
    };
    for (int c = 0; c < ahead; ++c) add(c, share_of);
    for (int c = 0; c < channels; ++c) {
      add(c + ahead, share_of);
      add(c - ahead - 1, -share_of);
      const long at = start + long(c) * area;
      for (int i = 0; i < n; ++i) scale[at + i] = sum[i];
      if (beta == Dtype(0.75)) {
        for (int i = 0; i < n; ++i) output[at + i] = to_minus(sum[i], Dtype(0.75)) * input[at + i];
      } else {
        for (int i = 0; i < n; ++i) output[at + i] = to_minus(sum[i], beta) * input[at + i];
      }
    }
  });
}

// input_diff = output_diff * scale^-beta - (2 alpha beta / size) input * sum over channels of output_diff * output / scale.
template <typename Dtype>
inline void lrn_back(int images, int channels, int area, int size, Dtype alpha, Dtype beta, const Dtype* input,
                     const Dtype* scale, const Dtype* output, const Dtype* output_diff, Dtype* input_diff) {
  const int ahead = (size - 1) / 2;
  const Dtype factor = 2 * alpha * beta / size;
  each_block(images, channels, area, [=](long start, int n) {
    Dtype sum[kBlock];
    std::fill(sum, sum + n, Dtype(0));
    const auto add = [&](int channel, Dtype sign) {
      if (channel < 0 || channel >= channels) return;
      const long at = start + long(channel) * area;
      for (int i = 0; i < n; ++i) sum[i] += sign * (output_diff[at + i] * output[at + i] / scale[at + i]);
    };
    for (int c = 0; c < ahead; ++c) add(c, 1);
    for (int c = 0; c < channels; ++c) {
      add(c + ahead, 1);
      const long at = start + long(c) * area;
      if (beta == Dtype(0.75)) {
        for (int i = 0; i < n; ++i) {
          input_diff[at + i] = output_diff[at + i] * to_minus(scale[at + i], Dtype(0.75)) - factor * (input[at + i] * sum[i]);
        }
      } else {
        for (int i = 0; i < n; ++i) {
          input_diff[at + i] = output_diff[at + i] * to_minus(scale[at + i], beta) - factor * (input[at + i] * sum[i]);
        }
      }
      add(c - ahead, -1);
    }
  });
}

}  // namespace parallel
}  // namespace caffe

#else  // one thread

#define OMP_MANY(n)

#endif  // _OPENMP
#endif  // BONECAFFE_CAFFE_PARALLEL_HPP_
