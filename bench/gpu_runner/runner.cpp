// Runs every CUDA function of the extension without Python: runner toy|production|all [part of a name]
//
// Each case is compared with a reference in double, row by row, and run three times: with poisoned outputs between
// guards, and to the same bits. Prints a line for each case as it ends, and one for each group. Exits with 1 if a case
// is wrong. "toy" has every kernel at a size that a memory checker, or a CPU that emulates the blocks, can take.
#include <chrono>
#include <cstdio>
#include <memory>
#include <numeric>

#include "cases.h"
#include "check.h"
#include "constants.h"
#include "memory.h"
#include "reference.h"
#include "sinkhorn/cuda/sinkhorn.h"
#include "style_nce/cuda/style_nce.h"

namespace runner {
namespace {

using namespace hystar_fast;

std::vector<uint8_t> random_mask(const Case& test) {
    const auto count = static_cast<size_t>(test.size.batch * test.size.n * test.size.m);
    const std::vector<float> draw = uniform(count, 0, 1, 7);
    std::vector<uint8_t> mask(count);
    for (size_t i = 0; i < count; ++i) mask[i] = draw[i] < static_cast<float>(test.masked);
    return mask;
}

double limit(const Case& test) { return 1e-6 / test.epsilon + 1e-5; }

// u, v, status and error of one problem that has a plan, and its plan.
void check_problem(Finding& found, const Case& test, Problem& truth, int64_t ran, int64_t iterations, int status,
                   double error, const float* cost, const uint8_t* mask, const float* plan, const float* u,
                   const float* v) {
    const auto [batch, n, m] = test.size;
    Doubles expected(n * m), rebuilt(n * m);
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < m; ++j) {
            const int64_t at = i * m + j;
            expected[at] = truth.plan(i, j);
            const bool forbidden = mask != nullptr && mask[at] != 0;
            rebuilt[at] = forbidden ? 0.0 : std::exp((double{u[i]} + v[j] - cost[at]) / test.epsilon);
            found.note(!forbidden || plan[at] == 0, "a forbidden entry is not 0");
        }
    found.hold(row_error(plan, expected.data(), n, m), limit(test), "a row of the plan");
    found.hold(row_error(rebuilt.data(), expected.data(), n, m), 4 * limit(test), "a row rebuilt from u and v");
    const double worst = truth.worst_row(), below = test.tol > 0 ? test.tol : CONVERGED_BELOW;
    found.note(std::fabs(error - worst) <= 0.02 * worst + 1e-5, "the reported error is wrong");
    if (std::fabs(worst - below) > 0.02 * below)
        found.note(status == (worst <= below ? CONVERGED : NOT_CONVERGED), "the status is wrong");
    found.note(std::abs(iterations - ran) <= (test.tol > 0 ? 1 : 0), "the number of iterations is wrong");
}

Finding run_forward(const Case& test) {
    const auto [batch, n, m] = test.size;
    const int64_t size = n * m;
    Finding found;
    const std::string kernel = device::forward_kernel(batch, n, m);
    found.note(expects(test, kernel), "the kernel is " + kernel);
    std::vector<float> cost = uniform(static_cast<size_t>(batch * size), 0, 1, 1);
    if (test.broken) {
        for (int64_t j = 0; j < m; ++j) cost[size + j] = INFINITY;
        cost[2 * size] = NAN;
        if (batch > 3)  // more than half of the rows for half of the columns: only a flow shows that there is no plan
            for (int64_t i = 0; i < n / 2 + 1; ++i)
                for (int64_t j = 0; j < (m + 1) / 2; ++j) cost[3 * size + i * m + j] = INFINITY;
    }
    const std::vector<uint8_t> mask = test.masked > 0 ? random_mask(test) : std::vector<uint8_t>{};
    const Array<float> given(cost);
    const Array<uint8_t> forbids(mask);
    Array<float> plan(batch * size), u(batch * n), v(batch * m), error(batch);
    Array<int> status(batch), iterations(batch);
    Memory workspace(static_cast<size_t>(sinkhorn_cuda_workspace(batch, n, m)));
    const auto call = [&, n = n, m = m, batch = batch] {
        sinkhorn_cuda_forward(given.at(), test.masked > 0 ? forbids.at() : 0, plan.at(), u.at(), v.at(), status.at(), error.at(),
                              iterations.at(), batch, n, m, test.epsilon, test.n_iter, test.tol, device::stream(),
                              workspace.bytes() ? workspace.at() : 0);
    };
    three_times(found, {&plan, &u, &v, &error, &status, &iterations}, {&workspace}, {&given, &forbids}, call);
    const auto plans = plan.values(), us = u.values(), vs = v.values(), errors = error.values();
    const auto statuses = status.values(), counts = iterations.values();
    std::vector<Finding> parts(batch);
    const auto check_one = [&, n = n, m = m](int64_t b) {
        const float *c = &cost[b * size], *p = &plans[b * size];
        if (test.broken && b > 0) {
            parts[b].note(statuses[b] == (b == 2 ? INVALID : INFEASIBLE) && counts[b] == 0, "the status is wrong");
            for (int64_t at = 0; at < size; ++at)
                parts[b].note(b == 2 ? std::isnan(p[at]) : p[at] == 0, "a problem without a plan has one");
            return;
        }
        const uint8_t* forbidden = test.masked > 0 ? &mask[b * size] : nullptr;
        Problem truth(c, forbidden, n, m, test.epsilon);
        int64_t ran = truth.iterate(test.n_iter, false, test.tol);
        if (test.tol > 0 && counts[b] != ran && std::abs(counts[b] - ran) == 1) {  // the last bits decide
            truth = Problem(c, forbidden, n, m, test.epsilon);
            truth.iterate(counts[b], false);
        }
        check_problem(parts[b], test, truth, ran, counts[b], statuses[b], errors[b], c, forbidden, p, &us[b * n],
                      &vs[b * m]);
    };
    if (size > 1 << 22)
        for (int64_t b = 0; b < batch; ++b) check_one(b);
    else in_parallel(batch, check_one);
    for (const Finding& part : parts) found.add(part);
    return found;
}

Finding run_gradient(const Case& test, bool implicit) {
    const auto [batch, n, m] = test.size;
    const int64_t size = n * m;
    Finding found;
    const std::string kernel = device::gradient_kernel(n, m);
    found.note(expects(test, kernel), "the kernel is " + kernel);
    if (kernel == "none") return found;
    const std::vector<float> cost = uniform(static_cast<size_t>(batch * size), 0, 1, 2);
    const std::vector<float> upstream = uniform(static_cast<size_t>(batch * size), -1, 1, 3);
    const std::vector<uint8_t> mask = test.masked > 0 ? random_mask(test) : std::vector<uint8_t>{};
    std::vector<float> plan(batch * size);
    Doubles truth(batch * size);
    // the implicit gradient is that of a converged plan
    const int64_t n_iter = implicit ? 300 : test.n_iter;
    in_parallel(batch, [&, n = n, m = m](int64_t b) {
        Problem problem(&cost[b * size], test.masked > 0 ? &mask[b * size] : nullptr, n, m, test.epsilon);
        problem.iterate(n_iter, !implicit);
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < m; ++j) plan[b * size + i * m + j] = static_cast<float>(problem.plan(i, j));
        const Doubles part = implicit ? implicit_gradient(&plan[b * size], &upstream[b * size], n, m, test.epsilon)
                                      : problem.unrolled(&upstream[b * size]);
        std::copy(part.begin(), part.end(), truth.begin() + b * size);
    });
    const Array<float> given(implicit ? plan : cost), dplan(upstream);
    const Array<uint8_t> forbids(mask);
    std::vector<int> counts(batch, static_cast<int>(n_iter));
    if (batch > 1) {  // a problem without iterations has no gradient
        counts[1] = 0;
        std::fill(truth.begin() + size, truth.begin() + 2 * size, 0.0);
    }
    const Array<int> iterations(counts);
    Array<float> dcost(batch * size);
    Memory workspace(implicit ? 0 : static_cast<size_t>(sinkhorn_cuda_unrolled_workspace(batch, n, m, n_iter)));
    const auto call = [&, n = n, m = m, batch = batch] {
        if (implicit)
            sinkhorn_cuda_implicit_backward(given.at(), dplan.at(), iterations.at(), dcost.at(), batch, n, m, test.epsilon,
                                            device::stream());
        else
            sinkhorn_cuda_unrolled_backward(given.at(), test.masked > 0 ? forbids.at() : 0, dplan.at(), iterations.at(),
                                            dcost.at(), batch, n, m, test.epsilon, n_iter, device::stream(), workspace.at());
    };
    three_times(found, {&dcost}, {&workspace}, {&given, &dplan, &forbids, &iterations}, call);
    const auto values = dcost.values();
    const double most = implicit ? 2e-4 : 2 * limit(test);
    found.hold(row_error(values.data(), truth.data(), batch * n, m), most, "a row of the gradient");
    return found;
}

Finding run_style_nce(const NceCase& test) {
    const auto [n, d, n_iter, weights, mean, masked, gamma] = test;
    constexpr double TEMPERATURE = 0.07, LAM = 1.0, EPSILON = 0.1;
    Finding found;
    const int64_t stride = d + 3;
    const std::vector<float> left = uniform(n * stride, -1, 1, 4), right = uniform(n * stride, -1, 1, 5);
    const Array<float> query(left), target(right);
    Array<float> units(2 * n * d), lengths(2 * n);
    three_times(found, {&units, &lengths}, {}, {&query, &target}, [&, n = n, d = d] {
        style_nce_cuda_normalise(query.at(), stride, target.at(), stride, n, d, units.at(), lengths.at(), device::stream());
    });
    Doubles unit(2 * n * d), length(2 * n);
    for (int64_t row = 0; row < 2 * n; ++row) {
        const float* x = row < n ? &left[row * stride] : &right[(row - n) * stride];
        for (int64_t k = 0; k < d; ++k) length[row] += double{x[k]} * x[k];
        length[row] = std::sqrt(length[row]);
        for (int64_t k = 0; k < d; ++k) unit[row * d + k] = x[k] / length[row];
    }
    const auto unit_values = units.values(), length_values = lengths.values();
    found.hold(row_error(unit_values.data(), unit.data(), 2 * n, d), 1e-6, "a unit row");
    found.hold(row_error(length_values.data(), length.data(), 2 * n, 1), 1e-6, "a length");

    std::vector<float> cosines(n * n);
    in_parallel(n, [&, n = n, d = d](int64_t i) {
        for (int64_t j = 0; j < n; ++j) {
            double sum = 0;
            for (int64_t k = 0; k < d; ++k) sum += unit[i * d + k] * unit[(n + j) * d + k];
            cosines[i * n + j] = static_cast<float>(sum);
        }
    });
    std::vector<uint8_t> mask(masked ? n * n : 0);
    for (size_t i = 0; i < mask.size(); ++i) mask[i] = i % 13 == 5;
    const Array<float> sim(cosines);
    const Array<uint8_t> forbids(mask);
    Array<float> loss(mean ? 1 : n), slope(n * n);
    Memory workspace(static_cast<size_t>(style_nce_cuda_workspace(n)));
    three_times(found, {&loss, &slope}, {&workspace}, {&sim, &lengths, &forbids}, [&, n = n, mean = mean] {
        style_nce_cuda_forward(sim.at(), lengths.at(), test.masked ? forbids.at() : 0, n, TEMPERATURE, test.gamma, LAM,
                               EPSILON, test.n_iter, test.weights, loss.at(), mean, slope.at(), device::stream(),
                               workspace.at());
    });
    NceReference truth = n > 1 ? style_nce(cosines.data(), masked ? mask.data() : nullptr,
                                           {n, n_iter, TEMPERATURE, gamma, LAM, EPSILON, weights})
                               : NceReference{Doubles(1), Doubles(1)};
    if (mean) truth.loss = {std::accumulate(truth.loss.begin(), truth.loss.end(), 0.0) / static_cast<double>(n)};
    const auto loss_values = loss.values(), slopes = slope.values();
    found.hold(row_error(loss_values.data(), truth.loss.data(), static_cast<int64_t>(truth.loss.size()), 1), 5e-5, "a loss");
    found.hold(row_error(slopes.data(), truth.slope.data(), n, n), 2e-4, "a row of the slope");

    // both products by the host; with a stride, the rows of query in dtarget are multiplied by dloss before
    const std::vector<float> dloss = uniform(mean ? 1 : n, 0.5, 1.5, 6);
    std::vector<float> products(2 * n * d);
    Doubles gradients(2 * n * d);
    const double scale = 1 / TEMPERATURE / (mean ? static_cast<double>(n) : 1);
    in_parallel(2 * n, [&, n = n, d = d, mean = mean](int64_t row) {
        const bool of_query = row < n;
        const int64_t own = of_query ? row : row - n;
        Doubles sum(d);
        for (int64_t j = 0; j < n; ++j) {
            const double weight = of_query ? slopes[own * n + j] : slopes[j * n + own] * (mean ? 1.0 : double{dloss[j]});
            for (int64_t k = 0; k < d; ++k) sum[k] += weight * unit_values[(of_query ? n + j : j) * d + k];
        }
        double radial = 0;
        for (int64_t k = 0; k < d; ++k) {
            products[row * d + k] = static_cast<float>(sum[k]);
            radial += sum[k] * unit_values[row * d + k];
        }
        const double factor = scale * (mean ? double{dloss[0]} : of_query ? double{dloss[own]} : 1.0) / length_values[row];
        for (int64_t k = 0; k < d; ++k) gradients[row * d + k] = factor * (sum[k] - radial * unit_values[row * d + k]);
    });
    const Array<float> upstream(dloss);
    Array<float> both(2 * n * d);
    three_times(found, {&both}, {}, {&units, &lengths, &upstream}, [&, n = n, d = d, mean = mean] {
        both.write(products);
        style_nce_cuda_project(both.at(), both.at() + n * d * sizeof(float), units.at(), lengths.at(), n, d, upstream.at(),
                               mean ? 0 : 1, scale, device::stream());
    });
    const auto projected = both.values();
    // at N = 1 the slope is 0, and in D = 2 or 3 most of a product is radial, so its rounding errors count
    found.hold(row_error(projected.data(), gradients.data(), 2 * n, d), d < 8 ? 1e-4 : 1e-5, "a row of the gradient");
    return found;
}

template <class Run>
void take(Report& report, const std::string& group, const std::string& name, const std::string& filter, const Run& run) {
    if ((group + ", " + name).find(filter) == std::string::npos) return;
    const auto started = std::chrono::steady_clock::now();
    Finding found;
    try {
        found = run();
    } catch (const std::exception& error) {
        found.problem = error.what();
    }
    report.add(group, name, found, std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count());
}

int run_all(int first, int last, const std::string& filter) {
    Report report;
    std::printf("device: %s\n", device::name().c_str());
    for (int scale = first; scale <= last; ++scale) {
        for (const Case& test : FORWARD[scale]) {
            const std::string kernel = test.kernel;
            const std::string group = kernel[0] == 't'   ? "sinkhorn tile"
                                      : kernel[0] == 'c' ? "sinkhorn cluster"
                                                         : "sinkhorn off chip";
            take(report, group, describe(test), filter, [&] { return run_forward(test); });
        }
        for (const Case& test : GRADIENT[scale])
            for (const bool implicit : {false, true})
                if (takes(test, implicit))
                    take(report, "sinkhorn gradient", (implicit ? "implicit, " : "unrolled, ") + describe(test), filter,
                         [&] { return run_gradient(test, implicit); });
        for (const NceCase& test : NCE[scale])
            take(report, "style_nce", describe(test), filter, [&] { return run_style_nce(test); });
    }
    return report.finish();
}

}  // namespace
}  // namespace runner

int main(int count, char** arguments) {
    const std::string scale = count > 1 ? arguments[1] : "all", filter = count > 2 ? arguments[2] : "";
    if (scale != "toy" && scale != "production" && scale != "all") {
        std::fprintf(stderr, "usage: %s toy|production|all [part of a name]\n", arguments[0]);
        return 2;
    }
    try {
        return runner::run_all(scale == "production" ? 1 : 0, scale == "toy" ? 0 : 1, filter) != 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 3;
    }
}
