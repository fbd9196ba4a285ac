// A stand-in for cuDNN's header: what scripts/caffe_cuda.h uses of cuDNN 9, with the real names and numbers. Its lists of
// algorithms are scripted by choose.cpp, because the real ones need a GPU.
#pragma once
#include <cstddef>

#define CUDNN_MAJOR 9

enum cudnnStatus_t { CUDNN_STATUS_SUCCESS = 0, CUDNN_STATUS_BAD_PARAM = 2000, CUDNN_STATUS_NOT_SUPPORTED = 3000 };
enum cudnnMathType_t { CUDNN_DEFAULT_MATH, CUDNN_TENSOR_OP_MATH, CUDNN_TENSOR_OP_MATH_ALLOW_CONVERSION, CUDNN_FMA_MATH };
enum cudnnDeterminism_t { CUDNN_NON_DETERMINISTIC, CUDNN_DETERMINISTIC };
enum cudnnDataType_t { CUDNN_DATA_FLOAT };
enum cudnnTensorFormat_t { CUDNN_TENSOR_NCHW };
enum cudnnConvolutionMode_t { CUDNN_CONVOLUTION, CUDNN_CROSS_CORRELATION };
enum cudnnConvolutionFwdAlgo_t { CUDNN_CONVOLUTION_FWD_ALGO_COUNT = 8 };
enum cudnnConvolutionBwdFilterAlgo_t { CUDNN_CONVOLUTION_BWD_FILTER_ALGO_COUNT = 7 };
enum cudnnConvolutionBwdDataAlgo_t { CUDNN_CONVOLUTION_BWD_DATA_ALGO_COUNT = 6 };

typedef struct Handle* cudnnHandle_t;
typedef struct Tensor { int n, c, h, w; }* cudnnTensorDescriptor_t;
typedef struct Filter { int k, c, h, w; }* cudnnFilterDescriptor_t;
typedef struct Convolution { int pad, stride; cudnnMathType_t math; }* cudnnConvolutionDescriptor_t;

template <typename Algorithm>
struct Listed {
  Algorithm algo;
  cudnnStatus_t status;
  float time;
  size_t memory;
  cudnnDeterminism_t determinism;
  cudnnMathType_t mathType;
};
typedef Listed<cudnnConvolutionFwdAlgo_t> cudnnConvolutionFwdAlgoPerf_t;
typedef Listed<cudnnConvolutionBwdFilterAlgo_t> cudnnConvolutionBwdFilterAlgoPerf_t;
typedef Listed<cudnnConvolutionBwdDataAlgo_t> cudnnConvolutionBwdDataAlgoPerf_t;

// choose.cpp's script
cudnnStatus_t pretended_list(int room, int* count, void (*put)(void*, int, int, int, size_t, int, int), void* listed);
cudnnStatus_t pretended_size(int algorithm, size_t* bytes);

inline cudnnStatus_t cudnnGetTensor4dDescriptor(cudnnTensorDescriptor_t x, cudnnDataType_t* type, int* n, int* c, int* h,
                                                int* w, int* along_n, int* along_c, int* along_h, int* along_w) {
  *type = CUDNN_DATA_FLOAT;
  *n = x->n, *c = x->c, *h = x->h, *w = x->w;
  *along_n = x->c * x->h * x->w, *along_c = x->h * x->w, *along_h = x->w, *along_w = 1;
  return x->n > 0 ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_BAD_PARAM;
}

inline cudnnStatus_t cudnnGetFilter4dDescriptor(cudnnFilterDescriptor_t f, cudnnDataType_t* type,
                                                cudnnTensorFormat_t* format, int* k, int* c, int* h, int* w) {
  *type = CUDNN_DATA_FLOAT, *format = CUDNN_TENSOR_NCHW;
  *k = f->k, *c = f->c, *h = f->h, *w = f->w;
  return CUDNN_STATUS_SUCCESS;
}

inline cudnnStatus_t cudnnGetConvolution2dDescriptor(cudnnConvolutionDescriptor_t conv, int* pad_h, int* pad_w,
                                                     int* stride_h, int* stride_w, int* dilation_h, int* dilation_w,
                                                     cudnnConvolutionMode_t* mode, cudnnDataType_t* type) {
  *pad_h = *pad_w = conv->pad, *stride_h = *stride_w = conv->stride, *dilation_h = *dilation_w = 1;
  *mode = CUDNN_CROSS_CORRELATION, *type = CUDNN_DATA_FLOAT;
  return CUDNN_STATUS_SUCCESS;
}

inline cudnnStatus_t cudnnGetConvolutionGroupCount(cudnnConvolutionDescriptor_t, int* groups) {
  *groups = 1;
  return CUDNN_STATUS_SUCCESS;
}

inline cudnnStatus_t cudnnGetConvolutionMathType(cudnnConvolutionDescriptor_t conv, cudnnMathType_t* math) {
  *math = conv->math;
  return CUDNN_STATUS_SUCCESS;
}

inline cudnnStatus_t cudnnSetConvolutionMathType(cudnnConvolutionDescriptor_t conv, cudnnMathType_t math) {
  conv->math = math;
  return CUDNN_STATUS_SUCCESS;
}

// The three directions differ in the order of their arguments and in their types only.
#define PRETENDED(name, Algo, First, Second, Third, Fourth) \
  inline cudnnStatus_t cudnnGetConvolution##name##Algorithm_v7(cudnnHandle_t, First, Second, Third, Fourth, int room, \
                                                               int* count, Listed<Algo>* listed) { \
    return pretended_list(room, count, [](void* all, int i, int algorithm, int status, size_t memory, int determinism, \
                                          int math) { \
      static_cast<Listed<Algo>*>(all)[i] = {Algo(algorithm), cudnnStatus_t(status), 1, memory, \
                                            cudnnDeterminism_t(determinism), cudnnMathType_t(math)}; \
    }, listed); \
  } \
  inline cudnnStatus_t cudnnGetConvolution##name##WorkspaceSize(cudnnHandle_t, First, Second, Third, Fourth, \
                                                                Algo algorithm, size_t* bytes) { \
    return pretended_size(int(algorithm), bytes); \
  }
PRETENDED(Forward, cudnnConvolutionFwdAlgo_t, cudnnTensorDescriptor_t, cudnnFilterDescriptor_t,
          cudnnConvolutionDescriptor_t, cudnnTensorDescriptor_t)
PRETENDED(BackwardFilter, cudnnConvolutionBwdFilterAlgo_t, cudnnTensorDescriptor_t, cudnnTensorDescriptor_t,
          cudnnConvolutionDescriptor_t, cudnnFilterDescriptor_t)
PRETENDED(BackwardData, cudnnConvolutionBwdDataAlgo_t, cudnnFilterDescriptor_t, cudnnTensorDescriptor_t,
          cudnnConvolutionDescriptor_t, cudnnTensorDescriptor_t)
#undef PRETENDED
