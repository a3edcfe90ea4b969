// The cases of the runner: every kernel at toy and at production sizes.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

namespace runner {

struct Size {
    int64_t batch, n, m;
    std::string text() const {
        return std::to_string(batch) + " of " + std::to_string(n) + "x" + std::to_string(m);
    }
};
struct Case {
    const char* kernel;  // that must be chosen; "one or another" where that depends on the number of multiprocessors
    Size size;
    int64_t n_iter;
    double epsilon = 0.05, tol = 0;
    double masked = 0;    // the share of forbidden entries; above a half, only a flow shows that there is a plan
    bool broken = false;  // problems 1, 2 and 3 have no plan
};

inline bool expects(const Case& test, const std::string& kernel) {
    return (std::string(test.kernel) + " or ").find(kernel + " or ") != std::string::npos;
}

// Toy, production
const std::vector<Case> FORWARD[] = {
    {
        {"tile 32", {1, 1, 1}, 3},
        {"tile 32", {3, 5, 7}, 9, 0.01},
        {"tile 48", {5, 31, 48}, 2, 0.05, 0, 0.6},
        {"tile 48", {4, 48, 48}, 9, 0.02, 0, 0, true},
        {"tile 32", {2, 30, 31}, 12, 0.001},
        {"tile 64", {1, 40, 60}, 30, 0.001},
        {"tile 64", {2, 64, 50}, 5},
        {"tile 96", {2, 65, 96}, 2, 0.05, 0, 0.6},
        {"tile 128", {2, 97, 128}, 2, 0.05, 0, 0.6},
        {"tile 192", {1, 192, 130}, 5, 0.01},
        {"tile 48", {3, 40, 40}, 60, 0.1, 1e-3},
        {"cluster 0 x 1", {1, 100, 256}, 4},
        {"cluster 0 x 2", {1, 200, 256}, 5, 0.01},
        {"cluster 0 x 4", {1, 300, 256}, 2, 0.05, 0, 0.6},
        {"cluster 0 x 8", {1, 600, 200}, 4},
        {"cluster 1 x 1", {1, 30, 500}, 4},
        {"cluster 1 x 2", {1, 100, 300}, 4},
        {"cluster 1 x 4", {1, 200, 500}, 4},
        {"cluster 1 x 8", {4, 260, 260}, 5, 0.05, 0, 0, true},
        {"cluster 1 x 16", {1, 520, 300}, 4},
        {"cluster 2 x 1", {1, 30, 700}, 4},
        {"cluster 2 x 2", {1, 70, 520}, 4},
        {"cluster 2 x 4", {1, 150, 520}, 4},
        {"cluster 2 x 8", {1, 300, 700}, 4, 0.05, 0, 0.1},
        {"cluster 2 x 16", {1, 640, 768}, 4},
        {"cluster 0 x 2", {1, 200, 220}, 60, 0.1, 1e-3},
        {"sweep 0 by four", {1, 1040, 40}, 4, 0.01},
        {"sweep 0 by four or cluster 0 x 1", {4, 16, 200}, 30, 0.001},
        {"sweep 0 by one", {1, 1040, 37}, 4, 0.05, 0, 0.1},
        {"sweep 1 by four", {4, 60, 800}, 4, 0.05, 0, 0, true},
        {"sweep 1 by one", {1, 60, 801}, 30, 0.2, 1e-3},
        {"sweep 2 by four", {1, 40, 2100}, 4},
        {"sweep 2 by one", {1, 17, 2501}, 4, 0.01},
        {"stream", {3, 8, 900}, 2, 0.05, 0, 0.1},
        {"stream", {3, 3, 9001}, 3, 0.05, 0, 0, true},
    },
    {
        {"tile 48", {1, 48, 48}, 50},
        {"tile 48", {4096, 48, 48}, 50},
        {"tile 32", {5000, 17, 17}, 50, 0.1, 0, 0.1},
        {"tile 128", {64, 128, 128}, 50, 0.02},
        {"tile 192", {200, 192, 192}, 50},
        {"cluster 0 x 2", {64, 256, 256}, 50},
        {"cluster 1 x 8", {16, 512, 512}, 50, 0.02},
        {"cluster 2 x 16", {8, 640, 768}, 50, 0.05, 0, 0.1},
        {"sweep 0 by four", {400, 16, 200}, 50, 0.01},
        {"sweep 1 by four", {1, 1024, 1024}, 50},
        {"sweep 1 by four", {64, 1024, 1024}, 10},
        {"sweep 2 by four", {1, 2500, 8192}, 20},
        {"stream", {1, 300, 9001}, 20},
    },
};
const std::vector<Case> GRADIENT[] = {
    {
        {"tile 48", {2, 5, 7}, 5},
        {"tile 48", {3, 48, 48}, 9, 0.01},
        {"tile 128", {3, 65, 33}, 5},
        {"tile 128", {1, 40, 60}, 30, 0.002},
        {"tile 128", {1, 100, 128}, 5, 0.02, 0, 0.1},
        {"cluster 0 x 1", {1, 60, 200}, 4},
        {"cluster 0 x 2", {2, 128, 129}, 4, 0.05, 0, 0.1},
        {"cluster 0 x 2", {1, 90, 200}, 4},
        {"cluster 0 x 4", {1, 200, 256}, 5, 0.01},
        {"cluster 0 x 8", {1, 300, 256}, 4},
    },
    {
        {"tile 48", {1024, 48, 48}, 50},
        {"tile 48", {3000, 20, 20}, 50, 0.02},
        {"tile 128", {64, 128, 128}, 50, 0.05, 0, 0.1},
        {"cluster 0 x 4", {16, 256, 256}, 50},
        {"cluster 0 x 8", {40, 512, 256}, 20},
    },
};

struct NceCase {
    int64_t n, d, n_iter;
    int weights;
    bool mean, masked;
    double gamma = 80;
};
const std::vector<NceCase> NCE[] = {
    {{1, 5, 3, 0, true, false}, {2, 3, 3, 0, false, false}, {17, 24, 6, 0, true, true, 0}, {48, 96, 6, 0, true, false},
     {33, 20, 6, 1, false, true}, {70, 33, 4, 2, true, true}, {40, 7, 4, 2, false, false, 0}, {200, 16, 4, 0, false, false}},
    {{48, 768, 50, 0, true, false}, {48, 768, 50, 1, false, true}, {192, 512, 50, 0, true, false, 0},
     {1030, 64, 50, 0, false, true}, {4096, 64, 10, 0, true, false}, {1024, 768, 50, 2, true, false}},
};

inline std::string describe(const Case& test) {
    char text[128];
    std::snprintf(text, sizeof text, "%s, %s, %d iterations, epsilon %g%s%s%s", test.kernel, test.size.text().c_str(),
                  static_cast<int>(test.n_iter), test.epsilon, test.tol > 0 ? ", tolerance" : "", test.masked > 0 ? ", mask" : "",
                  test.broken ? ", some without a plan" : "");
    return text;
}
inline std::string describe(const NceCase& test) {
    return "N" + std::to_string(test.n) + " D" + std::to_string(test.d) + " weights " + std::to_string(test.weights) +
           (test.mean ? ", mean" : ", rows") + (test.masked ? ", mask" : "");
}

// The implicit gradient takes a plan and no mask.
inline bool takes(const Case& test, bool implicit) { return !implicit || test.masked == 0; }

}  // namespace runner
