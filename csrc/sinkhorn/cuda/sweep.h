// The sweeping kernel (sinkhorn/cuda/sweep.cu) as the other sources see it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "sinkhorn/cuda/shapes.cuh"

namespace hystar_fast {

// Whether a multiprocessor of the current device holds a block of that shape.
bool sweep_fits_here(int shape);

// Floats of workspace.
int64_t sweep_words(int64_t problems, int n, int m, const Choice& choice);

// Everything but the outcome of the problems. Returns the part of the workspace from which that follows, a Workspace of
// sinkhorn/cuda/stream.cuh for each of them.
float* launch_sweep(const Batch& batch, int64_t problems, const Choice& choice, float* workspace, cudaStream_t stream);

}  // namespace hystar_fast
