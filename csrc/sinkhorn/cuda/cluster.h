// Declarations of cluster.cu: launches on clusters of thread blocks, and the choice of a kernel on the current device.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "sinkhorn/cuda/shapes.cuh"

namespace hystar_fast {

// The configuration of a launch of `problems` on clusters of `blocks`. It points into this object.
class ClusterLaunch {
  public:
    ClusterLaunch(int64_t problems, int threads, int blocks, cudaStream_t stream) {
        config_.gridDim = dim3(static_cast<unsigned>(problems * blocks));
        config_.blockDim = dim3(static_cast<unsigned>(threads));
        config_.stream = stream;
        cluster_.id = cudaLaunchAttributeClusterDimension;
        cluster_.val.clusterDim.x = static_cast<unsigned>(blocks);
        cluster_.val.clusterDim.y = cluster_.val.clusterDim.z = 1;
    }
    const cudaLaunchConfig_t* get() {
        config_.attrs = &cluster_;
        config_.numAttrs = 1;
        return &config_;
    }

  private:
    cudaLaunchConfig_t config_{};
    cudaLaunchAttribute cluster_{};
};

// Describes the current device. Without a device there are no multiprocessors.
Gpu gpu_here();

// Returns true if the current device can hold a cluster of this kernel.
bool cluster_fits_here(const void* kernel, int threads, int blocks);

// The result of `choose` for the current device. If the device cannot hold a cluster of that size, the problem is
// solved off chip.
Choice choose_here(int64_t batch, int64_t n, int64_t m);

void launch_cluster(const Batch& batch, int64_t problems, const Choice& choice, cudaStream_t stream);

}  // namespace hystar_fast
