// What CUDA and cuDNN dropped since Caffe's source of August 2018, supplied again. Ours; included before every file of a
// GPU build (build_caffe.py says `-include`; caffe_edits.py copies it into Caffe's source), so that Caffe's own files stay as they are.
//
// 1. cuDNN 8 dropped the three functions that choose a convolution's algorithm within a limit of workspace. Their
//    successors (…_v7) list the algorithms, best first; here the first that works and fits the limit is taken, as before.
#pragma once

#ifdef USE_CUDNN
#include <cudnn.h>

#if CUDNN_MAJOR >= 8

enum { CUDNN_CONVOLUTION_FWD_SPECIFY_WORKSPACE_LIMIT = 2 };
enum { CUDNN_CONVOLUTION_BWD_FILTER_SPECIFY_WORKSPACE_LIMIT = 2 };
enum { CUDNN_CONVOLUTION_BWD_DATA_SPECIFY_WORKSPACE_LIMIT = 2 };

namespace bonecaffe {

// The first algorithm of a list, ordered by expected speed, that works within `limit` bytes.
template <typename Listed, typename Algorithm>
inline cudnnStatus_t first_that_fits(cudnnStatus_t asked, const Listed* listed, int count, size_t limit, Algorithm* chosen) {
  if (asked != CUDNN_STATUS_SUCCESS) return asked;
  for (int i = 0; i < count; ++i) {
    if (listed[i].status == CUDNN_STATUS_SUCCESS && listed[i].memory <= limit) {
      *chosen = listed[i].algo;
      return CUDNN_STATUS_SUCCESS;
    }
  }
  return CUDNN_STATUS_NOT_SUPPORTED;
}

}  // namespace bonecaffe

inline cudnnStatus_t cudnnGetConvolutionForwardAlgorithm(
    cudnnHandle_t handle, cudnnTensorDescriptor_t x, cudnnFilterDescriptor_t w, cudnnConvolutionDescriptor_t conv,
    cudnnTensorDescriptor_t y, int /* within a limit: Caffe asks nothing else */, size_t limit, cudnnConvolutionFwdAlgo_t* chosen) {
  cudnnConvolutionFwdAlgoPerf_t listed[CUDNN_CONVOLUTION_FWD_ALGO_COUNT];
  int count = 0;
  const cudnnStatus_t asked = cudnnGetConvolutionForwardAlgorithm_v7(
      handle, x, w, conv, y, CUDNN_CONVOLUTION_FWD_ALGO_COUNT, &count, listed);
  return bonecaffe::first_that_fits(asked, listed, count, limit, chosen);
}

inline cudnnStatus_t cudnnGetConvolutionBackwardFilterAlgorithm(
    cudnnHandle_t handle, cudnnTensorDescriptor_t x, cudnnTensorDescriptor_t dy, cudnnConvolutionDescriptor_t conv,
    cudnnFilterDescriptor_t dw, int, size_t limit, cudnnConvolutionBwdFilterAlgo_t* chosen) {
  cudnnConvolutionBwdFilterAlgoPerf_t listed[CUDNN_CONVOLUTION_BWD_FILTER_ALGO_COUNT];
  int count = 0;
  const cudnnStatus_t asked = cudnnGetConvolutionBackwardFilterAlgorithm_v7(
      handle, x, dy, conv, dw, CUDNN_CONVOLUTION_BWD_FILTER_ALGO_COUNT, &count, listed);
  return bonecaffe::first_that_fits(asked, listed, count, limit, chosen);
}

inline cudnnStatus_t cudnnGetConvolutionBackwardDataAlgorithm(
    cudnnHandle_t handle, cudnnFilterDescriptor_t w, cudnnTensorDescriptor_t dy, cudnnConvolutionDescriptor_t conv,
    cudnnTensorDescriptor_t dx, int, size_t limit, cudnnConvolutionBwdDataAlgo_t* chosen) {
  cudnnConvolutionBwdDataAlgoPerf_t listed[CUDNN_CONVOLUTION_BWD_DATA_ALGO_COUNT];
  int count = 0;
  const cudnnStatus_t asked = cudnnGetConvolutionBackwardDataAlgorithm_v7(
      handle, w, dy, conv, dx, CUDNN_CONVOLUTION_BWD_DATA_ALGO_COUNT, &count, listed);
  return bonecaffe::first_that_fits(asked, listed, count, limit, chosen);
}

#endif  // CUDNN_MAJOR >= 8
#endif  // USE_CUDNN
