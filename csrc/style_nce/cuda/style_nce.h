// The CUDA StyleNCE as the extension sees it (hystar_fast._C, bound in style_nce/cuda/bind.cpp).
//
//   style_nce_cuda_normalise(query, query_stride, target, target_stride, N, D, units, lengths, stream)
//       One launch: unit rows [2, N, D] of both inputs and their lengths [2, N]: +inf for a zero row, -inf for one with NaN
//       or inf, whose unit rows are zero.
//
//   style_nce_cuda_workspace(N) -> int
//       Bytes of device memory that style_nce_cuda_forward needs on the current device.
//
//   style_nce_cuda_forward(sim, lengths, mask, N, temperature, gamma, lam, epsilon, n_iter, weights, loss, mean, slope,
//                          stream, workspace)
//       Cost, plan, loss and slope, a launch each (as many as its Sinkhorn takes for the plan, none for uniform weights).
//       sim [N, N], the product of the unit rows; mask bool [N, N] or 0; gamma 0 is "auto"; weights 0: paper, 1: authors,
//       2: uniform. Writes loss [N], or with `mean` one number, and slope [N, N]: d loss_i / d sim_ij times temperature.
//
//   style_nce_cuda_project(dquery, dtarget, units, lengths, N, D, dloss, dloss_stride, scale, stream)
//       One launch: dquery = slope @ target and dtarget = slope' @ query [N, D], as products of unit rows, become
//       gradients, times scale and the upstream gradient of the loss: dloss [N] of every row, or with a stride of 0 of their
//       mean. With a stride, the rows of query that made dtarget are to have been scaled already. 0 where one is not wanted.
//
// Pointers and the stream are integers; everything lies on the current device, contiguous but for the stride of the rows
// of query and target, in float32. Nothing waits for the device; deterministic.
#pragma once

#include <cstdint>

namespace hystar_fast {

void style_nce_cuda_normalise(uintptr_t query, int64_t query_stride, uintptr_t target, int64_t target_stride, int64_t n,
                              int64_t d, uintptr_t units, uintptr_t lengths, uintptr_t stream);

int64_t style_nce_cuda_workspace(int64_t n);

void style_nce_cuda_forward(uintptr_t sim, uintptr_t lengths, uintptr_t mask, int64_t n, double temperature, double gamma,
                            double lam, double epsilon, int64_t n_iter, int weights, uintptr_t loss, bool mean,
                            uintptr_t slope, uintptr_t stream, uintptr_t workspace);

void style_nce_cuda_project(uintptr_t dquery, uintptr_t dtarget, uintptr_t units, uintptr_t lengths, int64_t n, int64_t d,
                            uintptr_t dloss, int64_t dloss_stride, double scale, uintptr_t stream);

}  // namespace hystar_fast
