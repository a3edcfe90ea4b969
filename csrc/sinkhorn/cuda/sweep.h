// Declarations of sweep.cu, the sweeping kernel.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "sinkhorn/cuda/shapes.cuh"

namespace hystar_fast {

// Returns true if a multiprocessor of the current device can hold a block of that shape.
bool sweep_fits_here(int shape);

// The floats of the workspace.
int64_t sweep_words(int64_t problems, int n, int m, const Choice& choice);

// Computes all but the status and error of the problems. Returns the part of the workspace that stream_outcome needs
// for these: one Workspace of stream.cuh for each problem.
float* launch_sweep(const Batch& batch, int64_t problems, const Choice& choice, float* workspace, cudaStream_t stream);

}  // namespace hystar_fast
