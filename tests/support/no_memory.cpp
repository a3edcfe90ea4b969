// An operator new that fails for one size, which the environment names: loaded before the C++ library (LD_PRELOAD).
#include <cstdlib>
#include <new>

void* operator new(std::size_t size) {
    static const char* const failing = std::getenv("NO_MEMORY_FOR");
    static const std::size_t bytes = failing ? std::strtoull(failing, nullptr, 10) : 0;
    void* memory = size == bytes && bytes ? nullptr : std::malloc(size ? size : 1);
    if (!memory) throw std::bad_alloc();
    return memory;
}
