// Constants that the C++ and the CUDA implementations share with the Python reference (hystar_fast/ref).
// The module hystar_fast._C exports them, and tests/ops/test_native.py compares them with the reference.
#pragma once

namespace hystar_fast {

// The result of one Sinkhorn problem: SinkhornStatus of the reference.
enum Status : int { CONVERGED = 0, NOT_CONVERGED = 1, INFEASIBLE = 2, INVALID = 3 };

// The weights of StyleNCE's negatives, in the order of WEIGHTS in hystar_fast/ref/style_nce.py.
enum Weights : int { PAPER = 0, AUTHORS = 1, UNIFORM = 2 };

constexpr double CONVERGED_BELOW = 1e-3;    // the largest marginal error of a converged problem, without a tolerance
constexpr double MAX_EXPONENT = 60;         // the largest exponent in StyleNCE's cost, exp((1 - sim) / lam)
constexpr double AUTO_GAMMA = 80.0 / 47.0;  // gamma="auto" is this number times the negatives of a row
constexpr double LN2 = 0.6931471805599453;

}  // namespace hystar_fast
