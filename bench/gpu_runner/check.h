// Comparison of an output with its reference, and the report.
#pragma once

#include <cmath>
#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "memory.h"

namespace runner {

// The largest ||row - truth|| / ||truth|| of the rows, so that one wrong row in thousands is seen. A row much smaller
// than the others is compared with a tenth of their size. NaN counts as infinite.
template <class Value, class Truth>
double row_error(const Value* values, const Truth* truth, int64_t rows, int64_t columns) {
    double total = 0, worst = 0;
    for (int64_t i = 0; i < rows * columns; ++i) total += static_cast<double>(truth[i]) * truth[i];
    const double least = 0.1 * std::sqrt(total / static_cast<double>(rows)) + 1e-300;
    for (int64_t i = 0; i < rows; ++i) {
        double off = 0, size = 0;
        for (int64_t j = i * columns; j < (i + 1) * columns; ++j) {
            const double gap = static_cast<double>(values[j]) - truth[j];
            off += gap * gap;
            size += static_cast<double>(truth[j]) * truth[j];
        }
        const double error = std::sqrt(off) / std::fmax(std::sqrt(size), least);
        worst = error == error ? std::fmax(worst, error) : INFINITY;
    }
    return worst;
}

// What was found about one case. The first problem is kept.
struct Finding {
    std::string problem;
    double error = 0, limit = 0;

    void note(bool fine, const std::string& what) {
        if (!fine && problem.empty()) problem = what;
    }
    // Compares an error with its limit; the report has the one that is nearest to its limit.
    void hold(double value, double most, const std::string& what) {
        keep(value, most);
        char text[128];
        std::snprintf(text, sizeof text, "%s has an error of %.1e, more than %.0e", what.c_str(), value, most);
        note(value <= most, text);
    }
    void keep(double value, double most) {
        if (most > 0 && (limit == 0 || value / most > error / limit)) error = value, limit = most;
    }
    void add(const Finding& part) {
        note(part.problem.empty(), part.problem);
        keep(part.error, part.limit);
    }
};

// Calls three times, each time with poisoned memory, and compares all bits of the outputs.
inline void three_times(Finding& finding, const std::vector<Memory*>& outputs, const std::vector<Memory*>& scratch,
                        const std::vector<const Memory*>& inputs, const std::function<void()>& call) {
    std::vector<std::vector<char>> given, first;
    for (const Memory* input : inputs) given.push_back(input->read());
    for (int repeat = 0; repeat < 3; ++repeat) {
        for (Memory* output : outputs) output->poison();
        for (Memory* memory : scratch) memory->poison();
        call();
        device::finish();
        for (size_t i = 0; i < outputs.size(); ++i) {
            const std::vector<char> now = outputs[i]->read();
            if (repeat == 0) first.push_back(now);
            else finding.note(now == first[i], "run " + std::to_string(repeat + 1) + " differs from the first");
        }
    }
    for (const auto* memories : {&outputs, &scratch})
        for (const Memory* memory : *memories) finding.note(memory->guards_are_whole(), "wrote outside an array");
    for (size_t i = 0; i < inputs.size(); ++i) {
        finding.note(inputs[i]->guards_are_whole(), "wrote outside an input");
        finding.note(inputs[i]->read() == given[i], "changed an input");
    }
}

class Report {
  public:
    void add(const std::string& group, const std::string& name, const Finding& found, double seconds) {
        Group& entry = groups_[group];
        ++entry.cases;
        entry.wrong += !found.problem.empty();
        if (found.limit > 0) entry.nearest = std::fmax(entry.nearest, found.error / found.limit);
        if (!found.problem.empty() && entry.problem.empty()) entry.problem = name + ": " + found.problem;
        std::printf("%-5s %s, %s: error %.1e of %.0e, %.2f s%s%s\n", found.problem.empty() ? "ok" : "FAIL", group.c_str(),
                    name.c_str(), found.error, found.limit, seconds, found.problem.empty() ? "" : ": ",
                    found.problem.c_str());
        std::fflush(stdout);
    }

    // Prints one line for each group, and returns the number of wrong cases.
    int finish() const {
        int wrong = 0;
        for (const auto& [name, group] : groups_) {
            wrong += group.wrong;
            std::printf("%s %s: %d of %d cases, largest error %.2f of its limit%s%s\n", group.wrong ? "WRONG" : "RIGHT",
                        name.c_str(), group.cases - group.wrong, group.cases, group.nearest,
                        group.wrong ? "; " : "", group.problem.c_str());
        }
        return wrong;
    }

  private:
    struct Group {
        int cases = 0, wrong = 0;
        double nearest = 0;
        std::string problem;
    };
    std::map<std::string, Group> groups_;
};

}  // namespace runner
