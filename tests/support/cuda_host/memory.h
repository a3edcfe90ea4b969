// The memory of the emulated GPU: which thread may see what. Its rules are those of CUDA, not those of one run, so a
// fault is found in any order of the threads:
//
// - Two accesses to a word by different threads, one of which writes, must have a barrier between them that both threads
//   pass. Shuffles and votes of a warp order nothing. Several threads may write the same value.
//   Volatile accesses need no barrier between each other.
// - A thread may access arrays that are known here, its own registers, and the arguments of the kernel.
// - A copy that is on its way can be seen by nobody. After its thread has waited for it, it is a write of that thread.
// - The shared memory of another block may be accessed in a cluster, between two of its barriers.
//
// The kernels are compiled with -fsanitize=thread and -fsanitize=bounds-strict. They are not linked with the libraries
// of these sanitizers: memory.cpp has the functions that the compiler calls at every access and every wrong index.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace hystar_fast {

// A line of the source, such as that of a barrier.
struct Place {
    const char* file;
    int line;
    static Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

// Ends the process with a message. A fiber cannot throw an exception, because its stack is not that of the caller.
[[noreturn]] void give_up(const std::string& what);

// Returns true if a test asks for a run without the barriers and waits of this line.
bool is_removed(Place place);

namespace memory {

// Which threads a barrier is for. A barrier for all is one of a cluster or a grid.
enum Level { WARP, BLOCK, ALL };

// A launch begins with its block 0. Blocks of one launch that run one after the other are as unordered as on a GPU.
void begin(int blocks, int block_threads, int first_block, bool clustered);
void end();

// The thread that runs next, and its stack.
void resume(int thread, const char* stack, size_t bytes);

// The accesses between are checked.
void watch();
void pause();

// The thread that runs has passed a barrier.
void passed(Level level);

void copy_starts(void* to, const void* from, size_t bytes);
void copy_ends(void* to, const void* from, size_t bytes);

// The emulation's own code is not watched.
struct Unwatched {
    Unwatched() { pause(); }
    ~Unwatched() { watch(); }
    Unwatched(const Unwatched&) = delete;
};

// Arrays in global memory, known as long as this object lives. Null pointers are left out.
struct Array {
    const char* name;
    const void* at;
    size_t bytes;
};
class Known {
  public:
    explicit Known(const std::vector<Array>& arrays);
    ~Known();
    Known(const Known&) = delete;

  private:
    std::vector<const void*> added_;
};

// An array of its own whose bytes are all set, so that floats are NaN. It is far from all other memory. With an owner,
// which is the rank of a block, it is shared memory.
class Space {
  public:
    Space(const char* name, size_t bytes, int owner = -1);
    ~Space();
    Space(const Space&) = delete;
    void poison();
    char* at() const { return at_; }
    size_t bytes() const { return bytes_; }

  private:
    char *base_, *at_;
    size_t bytes_;
};

}  // namespace memory
}  // namespace hystar_fast
