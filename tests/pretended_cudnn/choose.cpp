// Asks scripts/caffe_cuda.h for algorithms as Caffe does, with scripted answers of cuDNN. Reads commands from stdin:
//
//   list STATUS [ALGORITHM STATUS BYTES DETERMINISTIC MATH]...   what cuDNN lists from now on
//   sizes [ALGORITHM STATUS BYTES]...                           workspaces; others are not supported
//   set NAME VALUE                                              n, c, h, k, kernel, pad, stride, limit or device
//   ask DIRECTION                                               prints status, algorithm, and the descriptor's math type
//   threads COUNT                                               asks "forward" from as many threads, prints the algorithms
//   asked                                                       prints how often cuDNN was asked for a list and for a size
#include "scripts/caffe_cuda.h"

#include <atomic>
#include <iostream>
#include <sstream>
#include <thread>

int pretended_device = 0;

struct Line {
  int algorithm, status;
  size_t memory;
  int determinism, math;
};

std::atomic<int> lists(0), sizes(0);
int list_status = 0;
std::vector<Line> listed;
std::map<int, std::pair<int, size_t>> workspaces;
std::map<std::string, int> shape = {{"n", 256}, {"c", 48}, {"h", 27}, {"k", 128}, {"kernel", 5}, {"pad", 2},
                                    {"stride", 1}, {"limit", 8 << 20}};

cudnnStatus_t pretended_list(int room, int* count, void (*put)(void*, int, int, int, size_t, int, int), void* all) {
  ++lists;
  std::this_thread::sleep_for(std::chrono::milliseconds(2));
  *count = 0;
  for (const Line& line : listed) {
    if (*count < room) put(all, (*count)++, line.algorithm, line.status, line.memory, line.determinism, line.math);
  }
  return cudnnStatus_t(list_status);
}

cudnnStatus_t pretended_size(int algorithm, size_t* bytes) {
  ++sizes;
  if (!workspaces.count(algorithm)) return CUDNN_STATUS_NOT_SUPPORTED;
  *bytes = workspaces[algorithm].second;
  return cudnnStatus_t(workspaces[algorithm].first);
}

std::string ask(const std::string& direction) {
  Tensor x = {shape["n"], shape["c"], shape["h"], shape["h"]}, y = {shape["n"], shape["k"], shape["h"], shape["h"]};
  Filter w = {shape["k"], shape["c"], shape["kernel"], shape["kernel"]};
  Convolution conv = {shape["pad"], shape["stride"], CUDNN_DEFAULT_MATH};  // as Caffe's Reshape leaves it
  const size_t limit = shape["limit"];
  int algorithm = -1;
  cudnnStatus_t status;
  if (direction == "forward") {
    status = cudnnGetConvolutionForwardAlgorithm(nullptr, &x, &w, &conv, &y, CUDNN_CONVOLUTION_FWD_SPECIFY_WORKSPACE_LIMIT,
                                                 limit, reinterpret_cast<cudnnConvolutionFwdAlgo_t*>(&algorithm));
  } else if (direction == "filter") {
    status = cudnnGetConvolutionBackwardFilterAlgorithm(
        nullptr, &x, &y, &conv, &w, CUDNN_CONVOLUTION_BWD_FILTER_SPECIFY_WORKSPACE_LIMIT, limit,
        reinterpret_cast<cudnnConvolutionBwdFilterAlgo_t*>(&algorithm));
  } else {
    status = cudnnGetConvolutionBackwardDataAlgorithm(
        nullptr, &w, &y, &conv, &x, CUDNN_CONVOLUTION_BWD_DATA_SPECIFY_WORKSPACE_LIMIT, limit,
        reinterpret_cast<cudnnConvolutionBwdDataAlgo_t*>(&algorithm));
  }
  std::ostringstream text;
  text << status << " " << algorithm << " " << conv.math;
  return text.str();
}

int main() {
  for (std::string text; std::getline(std::cin, text);) {
    std::istringstream words(text);
    std::string command, name;
    words >> command;
    if (command == "list") {
      words >> list_status;
      listed.clear();
      for (Line line; words >> line.algorithm >> line.status >> line.memory >> line.determinism >> line.math;) {
        listed.push_back(line);
      }
    } else if (command == "sizes") {
      workspaces.clear();
      int algorithm, status;
      for (size_t bytes; words >> algorithm >> status >> bytes;) workspaces[algorithm] = {status, bytes};
    } else if (command == "set") {
      int value = 0;
      words >> name >> value;
      (name == "device" ? pretended_device : shape[name]) = value;
    } else if (command == "ask") {
      words >> name;
      std::cout << ask(name) << std::endl;
    } else if (command == "threads") {
      int count = 0;
      words >> count;
      std::vector<std::string> answers(count);
      std::vector<std::thread> threads;
      for (std::string& answer : answers) threads.emplace_back([&answer]() { answer = ask("forward"); });
      for (std::thread& thread : threads) thread.join();
      for (const std::string& answer : answers) std::cout << answer << std::endl;
    } else if (command == "asked") {
      std::cout << lists << " " << sizes << std::endl;
    }
  }
}
