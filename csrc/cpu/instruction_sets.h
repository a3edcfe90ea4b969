// The instruction sets for which CPU kernels are compiled, and the choice of one of them at run time.
#pragma once

#include <string>
#include <vector>

// Every instruction set, the widest first. setup.py compiles each file *_per_isa.cpp once for every one, with the name
// in the macro HYSTAR_ISA.
#if defined(__x86_64__)
#define HYSTAR_INSTRUCTION_SETS(APPLY) APPLY(avx512) APPLY(avx2) APPLY(baseline)
#else
#define HYSTAR_INSTRUCTION_SETS(APPLY) APPLY(baseline)
#endif

// Stands in the namespace of an op that has a table of functions, Kernels<T>. Declares <instruction set>::kernels<T>()
// for every instruction set, and defines kernels_for<T>(wanted), which returns one of these tables.
#define HYSTAR_KERNELS_PER_ISA                                                      \
    HYSTAR_INSTRUCTION_SETS(HYSTAR_DECLARE_KERNELS)                                 \
    template <typename T>                                                           \
    const Kernels<T>& kernels_for(const std::string& wanted) {                      \
        const std::string& chosen = hystar_fast::cpu::choose_instruction_set(wanted); \
        HYSTAR_INSTRUCTION_SETS(HYSTAR_RETURN_KERNELS)                              \
        return baseline::kernels<T>();                                              \
    }
#define HYSTAR_DECLARE_KERNELS(ISA) \
    namespace ISA {                 \
    template <typename T>           \
    const Kernels<T>& kernels();    \
    }
#define HYSTAR_RETURN_KERNELS(ISA) \
    if (chosen == #ISA) return ISA::kernels<T>();

namespace hystar_fast::cpu {

// The names of the instruction sets that this CPU has, the widest first. The last is "baseline", which every CPU has.
std::vector<std::string> available_instruction_sets();

// Returns `wanted`, or the widest instruction set if it is empty. Throws std::invalid_argument if this CPU lacks it.
const std::string& choose_instruction_set(const std::string& wanted);

}  // namespace hystar_fast::cpu
