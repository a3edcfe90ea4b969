// The functions of the CUDA Sinkhorn that the extension hystar_fast._C has (bound in bind.cpp).
//
//   sinkhorn_cuda_workspace(batch, N, M) -> int
//       Bytes of device memory that sinkhorn_cuda_forward needs as its workspace on the current device. 0 if problems
//       stay on chip, as all problems with N, M <= 192 do.
//
//   sinkhorn_cuda_forward(cost, mask, plan, u, v, status, error, iterations,
//                         batch, N, M, epsilon, n_iter, tol, stream, workspace=0)
//       Pointers and the stream are integers. All tensors are contiguous and on the current device:
//         cost [batch, N, M] float32; mask [batch, N, M] bool (True forbids) or 0
//         plan [batch, N, M], u [batch, N], v [batch, M], error [batch] float32; status, iterations [batch] int32
//       Runs n_iter iterations as in hystar_fast/ref/sinkhorn.py; each ends with the column half-step. With tol > 0 a
//       problem stops before the first iteration whose row error is at most tol; with tol = 0 all iterations run.
//       plan = exp((u + v - cost) / epsilon). status is a Status, and error the largest |row sum - 1|; column sums are
//       exact up to rounding. INFEASIBLE problems have plan, u, v = 0, INVALID problems NaN; both have iterations = 0.
//       The call does not wait for the device. Results are deterministic. A failed launch raises RuntimeError.
//
//   sinkhorn_cuda_has_gradient(N, M) -> bool
//       True if the two gradients below exist for problems of this size on the current device: they must stay on chip.
//
//   sinkhorn_cuda_unrolled_workspace(batch, N, M, n_iter) -> int
//       Bytes of device memory that the unrolled gradient needs: at most 256 MiB, or the memory of one problem if that
//       is more.
//
//   sinkhorn_cuda_unrolled_backward(cost, mask, dplan, iterations, dcost, batch, N, M, epsilon, n_iter, stream, workspace)
//   sinkhorn_cuda_implicit_backward(plan, dplan, iterations, dcost, batch, N, M, epsilon, stream)
//       dplan, dcost [batch, N, M] float32; iterations [batch] int32, as the forward wrote them. A problem with 0
//       iterations gets a gradient of zero.
#pragma once

#include <cstdint>

namespace hystar_fast {

int64_t sinkhorn_cuda_workspace(int64_t batch, int64_t n, int64_t m);

void sinkhorn_cuda_forward(uintptr_t cost, uintptr_t mask, uintptr_t plan, uintptr_t u, uintptr_t v, uintptr_t status,
                           uintptr_t error, uintptr_t iterations, int64_t batch, int64_t n, int64_t m, double epsilon,
                           int64_t n_iter, double tol, uintptr_t stream, uintptr_t workspace);

bool sinkhorn_cuda_has_gradient(int64_t n, int64_t m);

int64_t sinkhorn_cuda_unrolled_workspace(int64_t batch, int64_t n, int64_t m, int64_t n_iter);

void sinkhorn_cuda_unrolled_backward(uintptr_t cost, uintptr_t mask, uintptr_t dplan, uintptr_t iterations,
                                     uintptr_t dcost, int64_t batch, int64_t n, int64_t m, double epsilon, int64_t n_iter,
                                     uintptr_t stream, uintptr_t workspace);

void sinkhorn_cuda_implicit_backward(uintptr_t plan, uintptr_t dplan, uintptr_t iterations, uintptr_t dcost, int64_t batch,
                                     int64_t n, int64_t m, double epsilon, uintptr_t stream);

}  // namespace hystar_fast
