// A stand-in for CUDA's header: the one function that scripts/caffe_cuda.h calls.
#pragma once
enum cudaError_t { cudaSuccess };
extern int pretended_device;
inline cudaError_t cudaGetDevice(int* device) {
  *device = pretended_device;
  return cudaSuccess;
}
