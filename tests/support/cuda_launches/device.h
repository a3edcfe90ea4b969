// What the .cu files need under g++, which compiles their launches and never runs their device code.
// tests/support/cuda_launches.py makes each kernel a function that only describes itself.
#pragma once

#include <cuda_runtime.h>
#include <device_launch_parameters.h>

#include <initializer_list>

#undef __noinline__
#define __noinline__

void __syncwarp();
void __syncthreads();
void __threadfence();
int __syncthreads_or(int);
int __any_sync(unsigned, int);
int __clz(int);
int atomicAdd(int*, int);
float __shfl_xor_sync(unsigned, float, int);
size_t __cvta_generic_to_shared(const void*);

namespace cooperative_groups {
struct Group {
    unsigned block_rank(), num_blocks();
    void sync();
    float* map_shared_rank(float*, int);
};
Group this_cluster();
Group this_grid();
}  // namespace cooperative_groups

namespace stub {

// The body of every kernel: its signature, its launch bounds, and the bytes of each static array in shared memory.
void describe(const char* signature, std::initializer_list<int> bounds, std::initializer_list<size_t> arrays);

// The launch that kernel<<<grid, threads, shared, stream>>>(arguments...) stands for.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 threads, size_t shared, cudaStream_t stream,
            Arguments... arguments) {
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = threads;
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace stub
