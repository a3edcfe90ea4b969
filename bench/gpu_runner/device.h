// What the runner needs of a device. device_cuda.cu has a GPU; tests/support/cuda_host/device.cpp emulates its blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace runner::device {

std::string name();
int threads();  // of the host, for the references
uintptr_t stream();
void* allocate(size_t bytes);
void release(void* memory);
void upload(void* to, const void* from, size_t bytes);
void download(void* to, const void* from, size_t bytes);
void fill(void* at, int byte, size_t bytes);
void finish();  // waits for the stream, and throws if a kernel failed

// The kernel that the extension chooses for a problem, such as "tile 48", "cluster 0 x 8" or "sweep 1".
std::string forward_kernel(int64_t batch, int64_t n, int64_t m);
std::string gradient_kernel(int64_t n, int64_t m);

}  // namespace runner::device
