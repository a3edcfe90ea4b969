// Finds the instruction sets of this CPU; see instruction_sets.h.
#include "cpu/instruction_sets.h"

#include <stdexcept>

namespace hystar_fast::cpu {
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

std::vector<std::string> available_instruction_sets() {
    std::vector<std::string> available;
#define HYSTAR_ADD(ISA) \
    if (cpu_has(#ISA)) available.push_back(#ISA);
    HYSTAR_INSTRUCTION_SETS(HYSTAR_ADD)
#undef HYSTAR_ADD
    return available;
}

const std::string& choose_instruction_set(const std::string& wanted) {
    static const std::string widest = available_instruction_sets().front();
    if (wanted.empty()) return widest;
    if (!cpu_has(wanted)) throw std::invalid_argument("this CPU has no " + wanted);
    return wanted;
}

}  // namespace hystar_fast::cpu
