// A pthread_create that counts the threads which are alive at a time: loaded before the C library (LD_PRELOAD).
#include <dlfcn.h>
#include <pthread.h>

#include <atomic>

namespace {

std::atomic<int> alive{0}, most{0}, before{0};

struct Start {
    void* (*function)(void*);
    void* argument;
};

void* run(void* given) {
    const Start start = *static_cast<Start*>(given);
    delete static_cast<Start*>(given);
    void* result = start.function(start.argument);
    --alive;
    return result;
}

}  // namespace

extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*function)(void*), void* argument) {
    using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
    static const auto create = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
    const int now = ++alive;
    for (int highest = most; now > highest && !most.compare_exchange_weak(highest, now);) {}
    const int failed = create(thread, attributes, run, new Start{function, argument});
    if (failed != 0) --alive;
    return failed;
}

// Returns the most threads at a time since the last call, beside those that were alive then.
extern "C" int most_threads() {
    const int found = most - before;
    before = alive.load();
    most = alive.load();
    return found;
}
