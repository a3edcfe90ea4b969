// The thread blocks of the GPU, for the block algorithms. tests/support/cuda_host/block.h emulates them on the CPU.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "sinkhorn/cuda/feasibility.cuh"

namespace hystar_fast {

template <int WARPS_>
struct DeviceBlock {
    static constexpr int WARPS = WARPS_, THREADS = 32 * WARPS_;
    static constexpr bool CLUSTERED = false;
    __device__ int thread() const { return static_cast<int>(threadIdx.x); }
    __device__ int lane() const { return static_cast<int>(threadIdx.x) % 32; }
    __device__ int warp() const { return WARPS == 1 ? 0 : static_cast<int>(threadIdx.x) / 32; }
    __device__ int rank() const { return 0; }
    __device__ float shuffle_xor(float value, int mask) const { return __shfl_xor_sync(0xffffffffu, value, mask); }
    __device__ void sync_warp() const { __syncwarp(); }
    __device__ void sync() const {
        if constexpr (WARPS == 1) __syncwarp();
        else __syncthreads();
    }
    __device__ bool any(bool fact) const {
        if constexpr (WARPS == 1) return __any_sync(0xffffffffu, fact) != 0;
        else return __syncthreads_or(fact) != 0;
    }
    // Counts this block, and returns whether it is the last of `blocks`. The last one sees all that the others wrote.
    __device__ bool arrives_last(int* counter, int blocks) const {
        __threadfence();
        sync();
        const bool last = any(thread() == 0 && atomicAdd(counter, 1) == blocks - 1);
        __threadfence();
        return last;
    }
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// A block of a cluster of 1, 2, 4, 8 or 16.
template <int WARPS>
struct DeviceCluster : DeviceBlock<WARPS> {
    static constexpr bool CLUSTERED = true;
    __device__ int rank() const { return static_cast<int>(cooperative_groups::this_cluster().block_rank()); }
    __device__ int blocks() const { return static_cast<int>(cooperative_groups::this_cluster().num_blocks()); }
    __device__ int log2_blocks() const { return 31 - __clz(blocks()); }
    __device__ void sync_cluster() const { cooperative_groups::this_cluster().sync(); }
    // The address in the shared memory of another block that corresponds to `here`.
    __device__ float* remote(float* here, int rank) const {
        return cooperative_groups::this_cluster().map_shared_rank(here, rank);
    }
};
#endif

// A block of a cooperative launch, which has a barrier for the whole grid.
template <int WARPS>
struct DeviceGrid : DeviceBlock<WARPS> {
    __device__ int rank() const { return static_cast<int>(blockIdx.x); }
    __device__ int blocks() const { return static_cast<int>(gridDim.x); }
    __device__ void sync_grid() const { cooperative_groups::this_grid().sync(); }
    // Starts a copy of 4 or 16 bytes from global to shared memory. It has arrived after the wait for its group.
    template <class Vector>
    __device__ void copy_async(Vector* to, const float* from) const {
        const auto at = static_cast<unsigned>(__cvta_generic_to_shared(to));
        if constexpr (sizeof(Vector) == 16)
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
        else
            asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(at), "l"(from) : "memory");
    }
    __device__ void commit_copies() const { asm volatile("cp.async.commit_group;" ::: "memory"); }
    // Waits until at most `but` groups, up to 7, are in flight. The instruction needs a constant.
    template <int MOST = 7>
    __device__ void wait_for_copies(int but) const {
        if constexpr (MOST > 0)
            if (but < MOST) return wait_for_copies<MOST - 1>(but);
        asm volatile("cp.async.wait_group %0;" ::"n"(MOST) : "memory");
    }
};

// A function that is not inlined, because it is long and rarely called. Inlined, it would take registers from the loop.
template <int WARPS>
__device__ __noinline__ void check_feasibility_apart(const Batch& batch, long long index, int* words) {
    DeviceBlock<WARPS> block;
    check_feasibility(block, Problem(batch, index), words);
}

inline void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // this must not become an error of a later call
    throw std::runtime_error(std::string("hystar_fast: ") + what + " failed: " + cudaGetErrorString(error));
}

}  // namespace hystar_fast
