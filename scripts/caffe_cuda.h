// What cuDNN dropped since Caffe's source of August 2018, supplied again. Ours; included before every file of a GPU build
// (`-include`; caffe_edits.py copies it into Caffe's source), so that Caffe's own files stay as they are.
//
// cuDNN 8 dropped the three functions that choose a convolution's algorithm within a limit of workspace. Their successors
// (…_v7) only list algorithms, fastest first. Here is the choice from such a list:
//
//   - An algorithm must work, fit the limit, compute in the precision asked for, and not be excluded by the user.
//   - Among those the fastest deterministic one is taken, because the same seed must give the same model.
//   - If the list has none, an algorithm that needs no list is taken, with a warning. Caffe would abort.
//   - Caffe asks in every Reshape, so in every forward pass. The answer is kept, and cuDNN is asked once per shape.
//
// The user's variables (docs/guide/gpu.md), read once; another value is an error:
//
//   BONECAFFE_CUDNN=fast            the fastest algorithm, deterministic or not
//   BONECAFFE_CUDNN_EXCLUDE=…       algorithms not to use, by number: "forward:6 filter:0,3 data:0"
//   BONECAFFE_TF32=1                allow TF32 (a tensor core's short multiplication) in convolutions
//
// The choice is host code without CUDA; tests/test_cudnn_choice.py runs it.
#pragma once

#ifdef USE_CUDNN
#include <cudnn.h>

#if CUDNN_MAJOR >= 8
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

enum { CUDNN_CONVOLUTION_FWD_SPECIFY_WORKSPACE_LIMIT = 2 };
enum { CUDNN_CONVOLUTION_BWD_FILTER_SPECIFY_WORKSPACE_LIMIT = 2 };
enum { CUDNN_CONVOLUTION_BWD_DATA_SPECIFY_WORKSPACE_LIMIT = 2 };

namespace bonecaffe {

enum Direction { FORWARD, FILTER, DATA };

inline const char* name_of(Direction direction) {
  static const char* const names[] = {"forward", "filter", "data"};
  return names[direction];
}

inline int count_of(Direction direction) {
  static const int counts[] = {CUDNN_CONVOLUTION_FWD_ALGO_COUNT, CUDNN_CONVOLUTION_BWD_FILTER_ALGO_COUNT,
                               CUDNN_CONVOLUTION_BWD_DATA_ALGO_COUNT};
  return counts[direction];
}

// ---- the user's variables --------------------------------------------------------------------------------------

struct Settings {
  bool fast = false;
  bool tf32 = false;
  unsigned excluded[3] = {0, 0, 0};  // by direction, a bit for each algorithm
  std::string error;                 // of the text; empty when it is all right
};

// One word of BONECAFFE_CUDNN_EXCLUDE, such as "filter:0,3"; an error's text, or nothing.
inline std::string exclude(const std::string& word, Settings* settings) {
  const size_t colon = word.find(':');
  int direction = -1;
  for (int i = FORWARD; i <= DATA; ++i) {
    if (word.substr(0, colon) == name_of(Direction(i))) direction = i;
  }
  if (colon == std::string::npos || direction < 0) return "expected forward:, filter: or data: and numbers";
  for (size_t from = colon + 1; from <= word.size();) {
    const size_t to = std::min(word.find(',', from), word.size());
    const std::string digits = word.substr(from, to - from);
    const bool number = !digits.empty() && digits.size() <= 3 && digits.find_first_not_of("0123456789") == std::string::npos;
    if (!number || atoi(digits.c_str()) >= count_of(Direction(direction))) {
      return "algorithms of " + word.substr(0, colon) + " are 0 to " + std::to_string(count_of(Direction(direction)) - 1) +
             ", separated by commas";
    }
    settings->excluded[direction] |= 1u << atoi(digits.c_str());
    from = to + 1;
  }
  return "";
}

// The settings from the texts of the variables, which are empty where a variable is not set.
inline Settings read_settings(const std::string& choice, const std::string& excluded, const std::string& tf32) {
  Settings settings;
  settings.fast = choice == "fast";
  settings.tf32 = tf32 == "1";
  if (!choice.empty() && choice != "fast" && choice != "deterministic") {
    settings.error = "BONECAFFE_CUDNN=" + choice + ": expected fast or deterministic (the default)";
  } else if (!tf32.empty() && tf32 != "0" && tf32 != "1") {
    settings.error = "BONECAFFE_TF32=" + tf32 + ": expected 1 (TF32 allowed) or 0 (the default)";
  }
  const char* const spaces = " \t\n";
  for (size_t from = excluded.find_first_not_of(spaces); from != std::string::npos && settings.error.empty();) {
    const size_t to = std::min(excluded.find_first_of(spaces, from), excluded.size());
    const std::string word = excluded.substr(from, to - from);
    const std::string problem = exclude(word, &settings);
    if (!problem.empty()) settings.error = "BONECAFFE_CUDNN_EXCLUDE: '" + word + "': " + problem;
    from = excluded.find_first_not_of(spaces, to);
  }
  for (int i = FORWARD; i <= DATA && settings.error.empty(); ++i) {
    if (settings.excluded[i] == (1u << count_of(Direction(i))) - 1) {
      settings.error = "BONECAFFE_CUDNN_EXCLUDE leaves no algorithm of " + std::string(name_of(Direction(i)));
    }
  }
  if (!settings.error.empty()) settings.error += ". Example: BONECAFFE_CUDNN_EXCLUDE='forward:6 filter:0,3 data:0'";
  return settings;
}

inline std::string variable(const char* name) {
  const char* const text = getenv(name);
  return text ? text : "";
}

// glog's numbers: 0 information, 1 warnings, 2 errors. Information is off where Caffe's is (pycaffe in bonecaffe).
inline void tell(int level, const std::string& text) {
  if (level < 2 && level < atoi(variable("GLOG_minloglevel").c_str())) return;
  fprintf(stderr, "cuDNN: %s\n", text.c_str());
  fflush(stderr);
}

// This process's settings. Ends the process when the user's text is wrong, before anything is computed.
inline const Settings& settings() {
  static const Settings read =
      read_settings(variable("BONECAFFE_CUDNN"), variable("BONECAFFE_CUDNN_EXCLUDE"), variable("BONECAFFE_TF32"));
  if (!read.error.empty()) {
    tell(2, read.error);
    std::_Exit(1);  // without destructors, because other threads may compute
  }
  return read;
}

// ---- the choice ------------------------------------------------------------------------------------------------

// Whether a descriptor of this math type may run an algorithm that is listed with that one.
inline bool may_use(cudnnMathType_t descriptor, cudnnMathType_t listed) {
  return listed == CUDNN_DEFAULT_MATH || listed == CUDNN_FMA_MATH || listed == descriptor;
}

// The place in the list of the algorithm to take, or -1: the first usable one that is deterministic, else the first usable.
template <typename Listed>
inline int choose(const Settings& settings, Direction direction, const Listed* listed, int count, size_t limit,
                  cudnnMathType_t math) {
  int usable = -1;
  for (int i = 0; i < count; ++i) {
    const int algorithm = static_cast<int>(listed[i].algo);
    if (listed[i].status != CUDNN_STATUS_SUCCESS || listed[i].memory > limit) continue;
    if (algorithm < 0 || algorithm >= count_of(direction) || settings.excluded[direction] >> algorithm & 1) continue;
    if (!may_use(math, listed[i].mathType)) continue;
    if (settings.fast || listed[i].determinism == CUDNN_DETERMINISTIC) return i;
    if (usable < 0) usable = i;
  }
  return usable;
}

// The order to try without a list: deterministic and with little workspace first (forward 0 is IMPLICIT_GEMM).
inline std::vector<int> without_list(const Settings& settings, Direction direction) {
  std::vector<int> order = direction == FORWARD ? std::vector<int>{0, 1} : std::vector<int>{1, 0};
  for (int i = 2; i < count_of(direction); ++i) order.push_back(i);
  std::vector<int> allowed;
  for (int algorithm : order) {
    if (!(settings.excluded[direction] >> algorithm & 1)) allowed.push_back(algorithm);
  }
  return allowed;
}

// ---- what the choice depends on --------------------------------------------------------------------------------

// Direction, limit, device, math type, and all that cuDNN knows of x, y, w and the convolution.
typedef std::array<long long, 48> Key;

struct Shape {
  Key key = {};
  size_t used = 0;
  std::string text;  // for the user, such as 256x48x27x27 by 128x48x5x5, pad 2x2, stride 1x1

  template <typename... Numbers>
  void add(Numbers... numbers) {
    static_assert(sizeof...(numbers) <= 16, "a key has a bounded length");
    for (long long number : {static_cast<long long>(numbers)...}) key[used++] = number;
  }
};

inline std::string joined(int a, int b) { return std::to_string(a) + "x" + std::to_string(b); }

inline cudnnStatus_t add_tensor(cudnnTensorDescriptor_t descriptor, Shape* shape) {
  cudnnDataType_t type;
  int n, c, h, w, along_n, along_c, along_h, along_w;
  const cudnnStatus_t asked =
      cudnnGetTensor4dDescriptor(descriptor, &type, &n, &c, &h, &w, &along_n, &along_c, &along_h, &along_w);
  if (asked != CUDNN_STATUS_SUCCESS) return asked;
  shape->add(type, n, c, h, w, along_n, along_c, along_h, along_w);
  if (shape->text.empty()) shape->text = joined(n, c) + "x" + joined(h, w);
  return asked;
}

inline cudnnStatus_t add_filter(cudnnFilterDescriptor_t descriptor, Shape* shape) {
  cudnnDataType_t type;
  cudnnTensorFormat_t format;
  int k, c, h, w;
  const cudnnStatus_t asked = cudnnGetFilter4dDescriptor(descriptor, &type, &format, &k, &c, &h, &w);
  if (asked != CUDNN_STATUS_SUCCESS) return asked;
  shape->add(type, format, k, c, h, w);
  shape->text += " by " + joined(k, c) + "x" + joined(h, w);
  return asked;
}

inline cudnnStatus_t add_convolution(cudnnConvolutionDescriptor_t descriptor, Shape* shape) {
  int pad_h, pad_w, stride_h, stride_w, dilation_h, dilation_w, groups;
  cudnnConvolutionMode_t mode;
  cudnnDataType_t type;
  cudnnMathType_t math;
  cudnnStatus_t asked = cudnnGetConvolution2dDescriptor(descriptor, &pad_h, &pad_w, &stride_h, &stride_w, &dilation_h,
                                                        &dilation_w, &mode, &type);
  if (asked == CUDNN_STATUS_SUCCESS) asked = cudnnGetConvolutionGroupCount(descriptor, &groups);
  if (asked == CUDNN_STATUS_SUCCESS) asked = cudnnGetConvolutionMathType(descriptor, &math);
  if (asked != CUDNN_STATUS_SUCCESS) return asked;
  shape->add(pad_h, pad_w, stride_h, stride_w, dilation_h, dilation_w, mode, type, groups, math);
  shape->text += ", pad " + joined(pad_h, pad_w) + ", stride " + joined(stride_h, stride_w);
  return asked;
}

// ---- asking once -----------------------------------------------------------------------------------------------

struct Answers {
  std::mutex lock;
  std::map<Key, int> chosen;
};

inline Answers& answers() {
  static Answers* const kept = new Answers;  // never destroyed: threads may ask until the process is gone
  return *kept;
}

// Sets *chosen. `list(count, listed)` asks cuDNN for its list, and `size(algorithm, bytes)` for an algorithm's workspace.
// Returns what a failed look into a descriptor returned; nothing else is a failure.
template <typename Listed, typename Algorithm, typename List, typename Size>
inline cudnnStatus_t algorithm_for(Direction direction, cudnnTensorDescriptor_t x, cudnnFilterDescriptor_t w,
                                   cudnnConvolutionDescriptor_t conv, cudnnTensorDescriptor_t y, size_t limit,
                                   const List& list, const Size& size, Algorithm* chosen) {
  const Settings& wish = settings();
  // Caffe sets up the descriptor again in each Reshape, and knows no math type. DEFAULT would allow TF32 on an A100.
  const cudnnMathType_t math = wish.tf32 ? CUDNN_TENSOR_OP_MATH : CUDNN_FMA_MATH;
  cudnnStatus_t asked = cudnnSetConvolutionMathType(conv, math);
  Shape shape;
  if (asked == CUDNN_STATUS_SUCCESS) asked = add_tensor(x, &shape);
  if (asked == CUDNN_STATUS_SUCCESS) asked = add_filter(w, &shape);
  if (asked == CUDNN_STATUS_SUCCESS) asked = add_tensor(y, &shape);
  if (asked == CUDNN_STATUS_SUCCESS) asked = add_convolution(conv, &shape);
  if (asked != CUDNN_STATUS_SUCCESS) return asked;
  int device = -1;
  if (cudaGetDevice(&device) != cudaSuccess) device = -1;
  shape.add(direction, limit, device);

  const std::lock_guard<std::mutex> guard(answers().lock);
  const auto known = answers().chosen.find(shape.key);
  if (known != answers().chosen.end()) {
    *chosen = static_cast<Algorithm>(known->second);
    return CUDNN_STATUS_SUCCESS;
  }
  const std::string what = std::string(name_of(direction)) + " of " + shape.text;
  // A list may have an algorithm several times, once per math type; what is left out is the slowest.
  Listed listed[4 * CUDNN_CONVOLUTION_FWD_ALGO_COUNT];
  int count = 0;
  asked = list(static_cast<int>(sizeof listed / sizeof *listed), &count, listed);
  const int place = choose(wish, direction, listed, asked == CUDNN_STATUS_SUCCESS ? count : 0, limit, math);
  int algorithm;
  if (place >= 0) {
    algorithm = static_cast<int>(listed[place].algo);
    tell(0, what + ": algorithm " + std::to_string(algorithm));
    if (!wish.fast && listed[place].determinism != CUDNN_DETERMINISTIC) {
      tell(1, "warning: " + what + ": algorithm " + std::to_string(algorithm) +
                  " is not deterministic, and no other is usable; the same seed may give another model");
    }
  } else {
    const std::vector<int> order = without_list(wish, direction);
    algorithm = order[0];
    for (int candidate : order) {
      size_t bytes = 0;
      if (size(static_cast<Algorithm>(candidate), &bytes) == CUDNN_STATUS_SUCCESS && bytes <= limit) {
        algorithm = candidate;
        break;
      }
    }
    tell(1, "warning: " + what + ": none of the " + std::to_string(count) + " listed algorithms is usable within " +
                std::to_string(limit) + " bytes (status " + std::to_string(static_cast<int>(asked)) +
                "); taking algorithm " + std::to_string(algorithm) + ", which may be slow");
  }
  answers().chosen[shape.key] = algorithm;
  *chosen = static_cast<Algorithm>(algorithm);
  return CUDNN_STATUS_SUCCESS;
}

}  // namespace bonecaffe

// ---- Caffe's three functions; it asks for nothing but "within a limit", which is the `int` ------------------------

inline cudnnStatus_t cudnnGetConvolutionForwardAlgorithm(
    cudnnHandle_t handle, cudnnTensorDescriptor_t x, cudnnFilterDescriptor_t w, cudnnConvolutionDescriptor_t conv,
    cudnnTensorDescriptor_t y, int, size_t limit, cudnnConvolutionFwdAlgo_t* chosen) {
  return bonecaffe::algorithm_for<cudnnConvolutionFwdAlgoPerf_t>(
      bonecaffe::FORWARD, x, w, conv, y, limit,
      [=](int room, int* count, cudnnConvolutionFwdAlgoPerf_t* listed) {
        return cudnnGetConvolutionForwardAlgorithm_v7(handle, x, w, conv, y, room, count, listed);
      },
      [=](cudnnConvolutionFwdAlgo_t algorithm, size_t* bytes) {
        return cudnnGetConvolutionForwardWorkspaceSize(handle, x, w, conv, y, algorithm, bytes);
      },
      chosen);
}

inline cudnnStatus_t cudnnGetConvolutionBackwardFilterAlgorithm(
    cudnnHandle_t handle, cudnnTensorDescriptor_t x, cudnnTensorDescriptor_t dy, cudnnConvolutionDescriptor_t conv,
    cudnnFilterDescriptor_t dw, int, size_t limit, cudnnConvolutionBwdFilterAlgo_t* chosen) {
  return bonecaffe::algorithm_for<cudnnConvolutionBwdFilterAlgoPerf_t>(
      bonecaffe::FILTER, x, dw, conv, dy, limit,
      [=](int room, int* count, cudnnConvolutionBwdFilterAlgoPerf_t* listed) {
        return cudnnGetConvolutionBackwardFilterAlgorithm_v7(handle, x, dy, conv, dw, room, count, listed);
      },
      [=](cudnnConvolutionBwdFilterAlgo_t algorithm, size_t* bytes) {
        return cudnnGetConvolutionBackwardFilterWorkspaceSize(handle, x, dy, conv, dw, algorithm, bytes);
      },
      chosen);
}

inline cudnnStatus_t cudnnGetConvolutionBackwardDataAlgorithm(
    cudnnHandle_t handle, cudnnFilterDescriptor_t w, cudnnTensorDescriptor_t dy, cudnnConvolutionDescriptor_t conv,
    cudnnTensorDescriptor_t dx, int, size_t limit, cudnnConvolutionBwdDataAlgo_t* chosen) {
  return bonecaffe::algorithm_for<cudnnConvolutionBwdDataAlgoPerf_t>(
      bonecaffe::DATA, dx, w, conv, dy, limit,
      [=](int room, int* count, cudnnConvolutionBwdDataAlgoPerf_t* listed) {
        return cudnnGetConvolutionBackwardDataAlgorithm_v7(handle, w, dy, conv, dx, room, count, listed);
      },
      [=](cudnnConvolutionBwdDataAlgo_t algorithm, size_t* bytes) {
        return cudnnGetConvolutionBackwardDataWorkspaceSize(handle, w, dy, conv, dx, algorithm, bytes);
      },
      chosen);
}

#endif  // CUDNN_MAJOR >= 8
#endif  // USE_CUDNN
