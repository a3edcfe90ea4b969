// The cluster kernels (sinkhorn_cuda_cluster.cu) as sinkhorn_cuda.cu sees them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "sinkhorn_cuda_shapes.cuh"

namespace hystar_fast {

// What `choose` says on the current device; streaming if the device cannot hold a cluster of that size after all.
Choice choose_here(int64_t batch, int64_t n, int64_t m);

void launch_cluster(const Batch& batch, int64_t problems, const Choice& choice, cudaStream_t stream);

}  // namespace hystar_fast
