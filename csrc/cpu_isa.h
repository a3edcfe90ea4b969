// The instruction sets that CPU kernels are built for, and the choice among them at run time.
#pragma once

#include <string>
#include <vector>

namespace hystar_fast {

// Those this CPU has, the widest first: of "avx512", "avx2" and "baseline", which every CPU has.
std::vector<std::string> cpu_isas();

// The instruction set named, or for an empty name the widest; std::invalid_argument where this CPU has it not.
const std::string& choose_isa(const std::string& wanted);

}  // namespace hystar_fast
