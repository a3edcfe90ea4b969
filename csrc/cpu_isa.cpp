// Which instruction sets this CPU has; see cpu_isa.h.
#include "cpu_isa.h"

#include <stdexcept>

namespace hystar_fast {
namespace {

bool cpu_has(const std::string& isa) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (isa == "avx2") return avx2;
    if (isa == "avx512")
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    return isa == "baseline";
}

}  // namespace

std::vector<std::string> cpu_isas() {
    std::vector<std::string> available;
    for (const char* isa : {"avx512", "avx2", "baseline"})
        if (cpu_has(isa)) available.push_back(isa);
    return available;
}

const std::string& choose_isa(const std::string& wanted) {
    static const std::string best = cpu_isas().front();
    if (wanted.empty()) return best;
    if (!cpu_has(wanted)) throw std::invalid_argument("this CPU has no " + wanted);
    return wanted;
}

}  // namespace hystar_fast
