// Compiled without the sanitizers, unlike the kernels that call it.
#include "memory.h"

#include "accesses.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string_view>

namespace hystar_fast {

void give_up(const std::string& what) {
    std::fprintf(stderr, "cuda_host: %s\n", what.c_str());
    std::abort();
}

bool is_removed(Place place) {
    static const std::string wanted = [] {
        const char* given = std::getenv("HYSTAR_WITHOUT_BARRIER");
        return std::string(given == nullptr ? "" : given);
    }();
    static const size_t colon = wanted.find(':');
    static const int line = colon == std::string::npos ? 0 : std::stoi(wanted.substr(colon + 1));
    const std::string_view file = place.file;
    return place.line == line && file.substr(file.rfind('/') + 1) == std::string_view(wanted).substr(0, colon);
}

namespace memory {
namespace {

constexpr size_t GAP = 16 << 20;  // bytes between an array of ours and any other memory

struct Word {
    Accesses written, read;
    int copies_to, copies_from;  // that are on their way
};

struct Region {
    std::string name;
    const char *at, *end;
    int owner;
    Word* words;
    Accesses remote;  // the last one by another block than the owner
};

std::map<uintptr_t, Region> regions;  // by their ends
Region* recent[256] = {};  // where addresses with these bits 12 to 19 were found last
std::vector<Thread> threads;
Thread* now = nullptr;
bool watched = false, clustered = false;
int first_block = 0, block_threads = 1;
uint32_t launch = 1;  // `all` of a thread at its start
const char *stack_at = nullptr, *caller_at = nullptr;
size_t stack_bytes = 0, caller_bytes = 0;

// A write without a barrier after another access to its word, or to a word to which several threads wrote the same value.
// It is allowed if it does not change the value, which is seen afterwards.
struct Doubtful {
    Word* word;
    const char* at;
    uint32_t value;
    Accesses other, own;
};
std::vector<Doubtful> doubtful;
std::map<const Word*, std::vector<Accesses>> writers;  // of words to which several threads wrote the same value

// The lines of the kernels at an address of code: that of the innermost function, and those of its callers while they are
// inlined.
std::string lines_of(const void* code) {
    Dl_info info;
    if (code == nullptr || dladdr(code, &info) == 0) return "an unknown place";
    const size_t offset = static_cast<const char*>(code) - static_cast<const char*>(info.dli_fbase) - 1;
    char command[1024], line[512];
    std::snprintf(command, sizeof command, "addr2line -i -e '%s' %zx", info.dli_fname, offset);
    FILE* pipe = popen(command, "r");
    std::string found;
    while (pipe != nullptr && std::fgets(line, sizeof line, pipe) != nullptr) {
        const char* name = std::strrchr(line, '/');
        std::string part = name == nullptr ? line : name + 1;
        part = part.substr(0, part.find_first_of(" \n"));
        const std::string file = part.substr(0, part.find(':'));
        if (file == "block.h" || file == "invoke.h" || file == "std_function.h") continue;
        found += (found.empty() ? "" : " in ") + part;
    }
    if (pipe != nullptr) pclose(pipe);
    return found;
}

std::string number(int of) { return of == SEVERAL ? "several" : std::to_string(of - 1); }

[[noreturn]] void fault(const std::string& what, const void* code) {
    watched = false;
    std::string by;
    if (now != nullptr) by = ", by thread " + number(now->thread) + " of block " + number(now->block);
    give_up(what + " at " + lines_of(code) + by);
}

[[noreturn]] void race(const char* what, const Region& region, const char* at, const Accesses& other, const void* code) {
    fault(std::string(what) + " " + region.name + "[" + std::to_string((at - region.at) / 4) + "], which thread " +
              number(other.by.thread) + " of block " + number(other.by.block) + " accesses at " + lines_of(other.code) +
              " without a barrier between,",
          code);
}

Region* region_of(const char* at) {
    Region*& last = recent[reinterpret_cast<uintptr_t>(at) >> 12 & 255];
    if (last != nullptr && at >= last->at && at < last->end) return last;
    const auto found = regions.upper_bound(reinterpret_cast<uintptr_t>(at));
    return last = found != regions.end() && at >= found->second.at ? &found->second : nullptr;
}

// The data of the program and its libraries: constants.
bool is_static(const char* at) {
    static const auto ranges = [] {
        std::vector<std::pair<const char*, const char*>> found;
        dl_iterate_phdr(
            [](dl_phdr_info* info, size_t, void* to) {
                for (int i = 0; i < info->dlpi_phnum; ++i) {
                    const auto& part = info->dlpi_phdr[i];
                    const auto* begin = reinterpret_cast<const char*>(info->dlpi_addr + part.p_vaddr);
                    if (part.p_type == PT_LOAD)
                        static_cast<decltype(found)*>(to)->emplace_back(begin, begin + part.p_memsz);
                }
                return 0;
            },
            &found);
        return found;
    }();
    for (const auto& [begin, end] : ranges)
        if (at >= begin && at < end) return true;
    return false;
}

void settle() {
    for (const Doubtful& write : doubtful) {
        uint32_t value;
        std::memcpy(&value, write.at, sizeof value);
        Accesses& written = write.word->written;
        if (value != write.value) {
            if (!write.other.allow(write.own)) race("a write to", *region_of(write.at), write.at, write.other, write.own.code);
            writers.erase(write.word);
            written.add(write.own);
        }
        if (written.are_before(*now)) continue;
        std::vector<Accesses>& all = writers[write.word];
        if (all.empty()) all.push_back(written);
        written.add(write.own);
        all.push_back(write.own);
    }
    doubtful.clear();
}

// Returns true if a thread reads what it, or a thread before it, has written, whoever else writes the same.
bool is_written_before(const Word& word, const Accesses& read) {
    if (word.written.allow(read)) return true;
    const auto found = writers.find(&word);
    if (found == writers.end()) return false;
    for (const Accesses& writer : found->second)
        if (writer.allow(read)) return true;
    return false;
}

[[noreturn]] void outside(const char* at, size_t bytes, bool writes, const void* code) {
    std::string where = "no array";
    size_t nearest = SIZE_MAX;
    for (const auto& [end, region] : regions) {
        const size_t distance = at < region.at ? region.at - at : at - region.end;
        if (distance >= nearest) continue;
        nearest = distance;
        where = std::to_string(distance) + " bytes " + (at < region.at ? "before " : "after ") + region.name;
    }
    fault(std::string(writes ? "a write" : "a read") + " of " + std::to_string(bytes) + " bytes outside every array, " + where,
          code);
}

// Checks an access to memory that other threads may see.
__attribute__((noinline)) void check(const char* at, size_t bytes, bool writes, const void* code, bool relaxed) {
    if (!doubtful.empty()) settle();
    Region* region = region_of(at);
    if (region == nullptr && !writes && is_static(at)) return;
    if (region == nullptr || at + bytes > region->end) outside(at, bytes, writes, code);
    if (region->owner >= 0 && region->owner != now->block - 1 - first_block) {
        if (!clustered) fault("an access to the shared memory of another block", code);
        if (now->all == launch) fault("an access to the shared memory of a block that may not have started", code);
        region->remote = {*now, relaxed, code};
    }
    const Accesses own{*now, relaxed, code};
    Word* const end = region->words + (at + bytes - 1 - region->at) / 4 + 1;
    for (Word* word = region->words + (at - region->at) / 4; word < end; ++word) {
        const char* place = region->at + 4 * (word - region->words);
        if (word->copies_to > 0) fault("an access to " + region->name + ", to which a copy is on its way,", code);
        if (writes && word->copies_from > 0) fault("a write to " + region->name + ", which is being copied,", code);
        if (!writes) {
            if (!is_written_before(*word, own)) race("a read of", *region, place, word->written, code);
            word->read.add(own);
        } else {
            const bool ordered = word->written.allow(own);
            if (ordered && word->read.allow(own) && !word->written.are_several()) {
                word->written.add(own);
                continue;
            }
            doubtful.push_back({word, place, 0, ordered ? word->read : word->written, own});
            std::memcpy(&doubtful.back().value, place, sizeof(uint32_t));
        }
    }
}

// Most accesses are to a thread's own registers, which are on its stack, and to the arguments of the kernel.
inline void access(const char* at, size_t bytes, bool writes, const void* code, bool relaxed = false) {
    if (watched && static_cast<size_t>(at - stack_at) >= stack_bytes && static_cast<size_t>(at - caller_at) >= caller_bytes)
        check(at, bytes, writes, code, relaxed);
}

void add(const char* name, const void* at, size_t bytes, int owner) {
    if (at == nullptr || bytes == 0) return;
    const auto* begin = static_cast<const char*>(at);
    auto* words = static_cast<Word*>(std::calloc((bytes + 3) / 4, sizeof(Word)));
    if (words == nullptr) give_up("no memory");
    regions[reinterpret_cast<uintptr_t>(begin + bytes)] = {name, begin, begin + bytes, owner, words, {}};
}

// Forgets all accesses to an array.
void forget(const Region& region) {
    const size_t count = (region.end - region.at + 3) / 4;
    writers.erase(writers.lower_bound(region.words), writers.lower_bound(region.words + count));
    std::memset(region.words, 0, count * sizeof(Word));
}

void remove(const void* at) {
    for (Region*& region : recent) region = nullptr;
    for (auto found = regions.begin(); found != regions.end(); ++found)
        if (found->second.at == at) {
            forget(found->second);
            std::free(found->second.words);
            regions.erase(found);
            return;
        }
}

}  // namespace

void begin(int blocks, int size, int number, bool is_clustered) {
    if (number == 0) {
        for (const Thread& thread : threads) launch = thread.all > launch ? thread.all : launch;
        ++launch;
    }
    first_block = number;
    block_threads = size;
    clustered = is_clustered;
    threads.clear();
    for (int t = 0; t < blocks * size; ++t) threads.push_back({launch, 0, 0, 1 + number + t / size, 1 + t / 32, 1 + t});
    for (auto& [end, region] : regions) region.remote = {};
    if (static_cast<size_t>(reinterpret_cast<const char*>(&number) - caller_at) < caller_bytes) return;
    pthread_attr_t attributes;
    void* base;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &base, &caller_bytes);
    pthread_attr_destroy(&attributes);
    caller_at = static_cast<const char*>(base);
}

void end() {
    now = nullptr;
    for (const auto& [end, region] : regions)
        if (region.remote.by.block != NOBODY && region.remote.by.all == threads[region.owner * block_threads].all)
            fault("the end of a block while another may access its shared memory", region.remote.code);
}

void resume(int thread, const char* stack, size_t bytes) {
    now = &threads[thread];
    stack_at = stack;
    stack_bytes = bytes;
}

void watch() { watched = true; }
void pause() {
    if (watched) settle();
    watched = false;
}

void passed(Level level) {
    if (level == ALL) ++now->all;
    if (level == BLOCK) ++now->of_block;
    if (level == WARP) ++now->of_warp;
}

namespace {
void mark(int Word::*copies, const void* at, size_t bytes, int change) {
    Region* region = region_of(static_cast<const char*>(at));
    Word* word = region->words + (static_cast<const char*>(at) - region->at) / 4;
    for (size_t i = 0; i < bytes / 4; ++i) word[i].*copies += change;
}
}  // namespace

void copy_starts(void* to, const void* from, size_t bytes) {
    const void* code = __builtin_return_address(0);
    watched = true;
    access(static_cast<const char*>(from), bytes, false, code);
    access(static_cast<char*>(to), bytes, true, code);
    watched = false;
    mark(&Word::copies_to, to, bytes, 1);
    mark(&Word::copies_from, from, bytes, 1);
    std::memset(to, 0xff, bytes);
    doubtful.clear();
}

void copy_ends(void* to, const void* from, size_t bytes) {
    const void* code = __builtin_return_address(0);
    mark(&Word::copies_to, to, bytes, -1);
    mark(&Word::copies_from, from, bytes, -1);
    watched = true;
    access(static_cast<const char*>(from), bytes, false, code);
    access(static_cast<char*>(to), bytes, true, code);
    watched = false;
}

Known::Known(const std::vector<Array>& arrays) {
    for (const Array& array : arrays) {
        add(array.name, array.at, array.bytes, -1);
        added_.push_back(array.at);
    }
}
Known::~Known() {
    for (const void* at : added_) remove(at);
}

Space::Space(const char* name, size_t bytes, int owner) : bytes_(bytes) {
    void* base = mmap(nullptr, bytes + 2 * GAP, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) give_up("no memory");
    base_ = static_cast<char*>(base);
    at_ = base_ + GAP;
    add(name, at_, bytes, owner);
    poison();
}
Space::~Space() {
    remove(at_);
    munmap(base_, bytes_ + 2 * GAP);
}
void Space::poison() {
    std::memset(at_, 0xff, bytes_);
    forget(*region_of(at_));
}

}  // namespace memory
}  // namespace hystar_fast

// The functions that the compiler calls.
#define HYSTAR_ACCESS(name, bytes, ...) \
    void name(void* at) { hystar_fast::memory::access(static_cast<char*>(at), bytes, __VA_ARGS__); }
#define HYSTAR_ACCESSES(bytes)                                                               \
    HYSTAR_ACCESS(__tsan_read##bytes, bytes, false, __builtin_return_address(0))             \
    HYSTAR_ACCESS(__tsan_write##bytes, bytes, true, __builtin_return_address(0))             \
    HYSTAR_ACCESS(__tsan_volatile_read##bytes, bytes, false, __builtin_return_address(0), true) \
    HYSTAR_ACCESS(__tsan_volatile_write##bytes, bytes, true, __builtin_return_address(0), true)
extern "C" {
HYSTAR_ACCESSES(1)
HYSTAR_ACCESSES(2)
HYSTAR_ACCESSES(4)
HYSTAR_ACCESSES(8)
HYSTAR_ACCESSES(16)
void __tsan_read_range(void* at, unsigned long bytes) {
    hystar_fast::memory::access(static_cast<char*>(at), bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void* at, unsigned long bytes) {
    hystar_fast::memory::access(static_cast<char*>(at), bytes, true, __builtin_return_address(0));
}
void __tsan_init() {}

struct WrongIndex {
    const char* file;
    uint32_t line, column;
    const struct {
        uint16_t kind, info;
        char name[1];
    } * array;
};
void __ubsan_handle_out_of_bounds_abort(WrongIndex* found, uintptr_t index) {
    const char* name = std::strrchr(found->file, '/');
    hystar_fast::give_up("index " + std::to_string(static_cast<intptr_t>(index)) + " outside " + found->array->name + " at " +
                         (name == nullptr ? found->file : name + 1) + ":" + std::to_string(found->line));
}
}
