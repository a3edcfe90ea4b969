// The functions of the CUDA StyleNCE that the extension hystar_fast._C has (bound in bind.cpp).
//
//   style_nce_cuda_normalise(query, query_stride, target, target_stride, N, D, units, lengths, stream)
//       One launch: the unit rows [2, N, D] of both inputs and their lengths [2, N]. For a zero row the length is +inf,
//       for a row with NaN or inf it is -inf, and the unit row is zero.
//
//   style_nce_cuda_workspace(N) -> int
//       Bytes of device memory that style_nce_cuda_forward needs on the current device.
//
//   style_nce_cuda_forward(sim, lengths, mask, N, temperature, gamma, lam, epsilon, n_iter, weights, loss, mean, slope,
//                          stream, workspace)
//       Cost, plan, loss and slope. The plan takes the launches of Sinkhorn, or none with uniform weights; the others
//       take one launch each. sim [N, N] is the product of the unit rows, mask is bool [N, N] or 0, gamma 0 means
//       "auto", and weights is a value of Weights. Writes loss [N], or one number if `mean`, and slope [N, N]:
//       d loss_i / d sim_ij times temperature.
//
//   style_nce_cuda_project(dquery, dtarget, units, lengths, N, D, dloss, dloss_stride, scale, stream)
//       One launch: turns the products dquery = slope @ target and dtarget = slope' @ query [N, D] of unit rows into
//       gradients, times scale and the upstream gradient of the loss: dloss [N] of every row, or one of their mean if
//       the stride is 0. With a stride, the rows of query in the product dtarget must be multiplied by dloss before.
//       dquery or dtarget may be 0.
//
// Pointers and the stream are integers. All tensors are float32, on the current device, and contiguous except for the
// row stride of query and target. The calls do not wait for the device, and results are deterministic.
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
