// Which accesses to a word come before which: by the barriers that their threads have passed.
#pragma once

#include <cstdint>

namespace hystar_fast::memory {

constexpr int NOBODY = 0, SEVERAL = -1;

// A thread, and how many barriers it has passed: for all, for its block, for its warp. Numbers start at 1.
struct Thread {
    uint32_t all, of_block, of_warp;
    int block, warp, thread;
};

// The accesses to a word that count: all that are not ordered before the last one. That is one thread, or several of
// a warp, of a block, or of several blocks.
struct Accesses {
    Thread by;
    bool relaxed;  // all of them are volatile
    const void* code;

    bool are_before(const Thread& now) const {
        if (by.block == NOBODY || by.all < now.all) return true;
        if (by.block != now.block) return false;
        if (by.of_block < now.of_block) return true;
        if (by.warp != now.warp) return false;
        return by.of_warp < now.of_warp || by.thread == now.thread;
    }
    bool are_several() const { return by.block == SEVERAL || by.warp == SEVERAL || by.thread == SEVERAL; }
    // Returns true if an access may follow at any time.
    bool allow(const Accesses& next) const { return are_before(next.by) || (relaxed && next.relaxed); }
    void add(const Accesses& next) {
        const Thread& now = next.by;
        if (are_before(now)) {
            *this = next;
            return;
        }
        if (by.block != now.block) by.block = SEVERAL;
        else if (by.warp != now.warp) by.warp = SEVERAL;
        else by.thread = SEVERAL;
        relaxed &= next.relaxed;
        code = next.code;
    }
};

}  // namespace hystar_fast::memory
