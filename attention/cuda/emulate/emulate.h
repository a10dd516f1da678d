// Runs kernels on the CPU, for tests. The sources are compiled unchanged by g++, with this file before them.
//
// A block's threads are fibers of one system thread. Blocks run one after the other, in an order drawn from a seed. The
// warps of a block also run in a drawn order between two barriers. A collective operation of a warp waits for all 32 lanes,
// and a barrier waits for all threads. A kernel in which some of them don't arrive is stopped with a message. Shared memory
// starts as 0xff (NaN). It ends at the end of a page, and the page behind it must not be touched. Asynchronous copies
// happen at once, or only when they are waited for, as the seed says, because a GPU may do either.
#pragma once
#include <csetjmp>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <sys/mman.h>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static thread_local
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

namespace emulate {

struct Three {
    unsigned x, y, z;
};

// A copy of 16 bytes that was started.
struct Copy {
    void *to;
    const void *from;
    bool valid;
};

constexpr size_t PAGE = 4096, STACK = 256 * 1024;

struct Fiber;
using Operation = void (*)(Fiber *lanes);

enum class Wait { None, Barrier, Warp, Done };

struct Fiber {
    Three thread;
    Wait wait;
    jmp_buf context;
    bool started;
    // The collective operation that the fiber waits for, and this lane's operands.
    Operation operation;
    const void *in;
    void *out;
    // Groups of copies. The last one is the group to which new copies are added.
    std::vector<std::vector<Copy>> copies;
};

// The stacks of the fibers. A fiber lives on from block to block and from launch to launch, because to start one takes system calls.
struct Stacks {
    unsigned char *at = nullptr;
    size_t count = 0;

    void clear() {
        if (count > 0) {
            munmap(at, count * STACK);
        }
        count = 0;
    }
    ~Stacks() { clear(); }
};

struct Launch {
    Three grid, block, at;
    std::vector<Fiber> fibers;
    Stacks stacks;
    Fiber *current;
    jmp_buf scheduler;
    unsigned char *shared;
    bool late_copies;
    unsigned long long random;
    void (*body)(void **);
    void **arguments;
};

inline thread_local Launch launch;

[[noreturn]] inline void fail(const char *what) {
    Launch &l = launch;
    unsigned thread = l.current ? l.current->thread.x : 0;
    fprintf(stderr, "emulator: %s, in block (%u, %u, %u), thread %u\n", what, l.at.x, l.at.y, l.at.z, thread);
    abort();
}

inline unsigned long long draw() {
    unsigned long long z = launch.random += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

template <class T> void shuffle(std::vector<T> &items) {
    for (size_t i = items.size(); i > 1; i--) {
        std::swap(items[i - 1], items[draw() % i]);
    }
}

// Lets other fibers run. Returns when what the fiber waits for has happened.
__attribute__((noinline)) inline void pause(Wait wait) {
    Launch &l = launch;
    l.current->wait = wait;
    if (_setjmp(l.current->context) == 0) {
        _longjmp(l.scheduler, 1);
    }
}

// A fiber runs one thread of a block after the other.
__attribute__((noinline)) inline void run_fiber() {
    for (;;) {
        launch.body(launch.arguments);
        pause(Wait::Done);
    }
}

__attribute__((noinline)) inline void resume(Fiber &fiber) {
    Launch &l = launch;
    l.current = &fiber;
    if (_setjmp(l.scheduler) == 0) {
        if (fiber.started) {
            _longjmp(fiber.context, 1);
        }
        fiber.started = true;
        ucontext_t start;
        getcontext(&start);
        start.uc_stack.ss_sp = l.stacks.at + (&fiber - l.fibers.data()) * STACK;
        start.uc_stack.ss_size = STACK;
        start.uc_link = nullptr;
        makecontext(&start, run_fiber, 0);
        setcontext(&start);
    }
}

// An operation of a whole warp. It is done once all lanes have reached it.
template <class In, class Out> void collective(Operation operation, const In &in, Out &out) {
    Fiber &own = *launch.current;
    own.operation = operation;
    own.in = &in;
    own.out = &out;
    pause(Wait::Warp);
}

// Lets a warp run to its next operation, and does the operation once all 32 lanes have reached it. Returns false if the
// warp can't go on, because it is at a barrier or has ended.
inline bool step_warp(Fiber *lanes, std::vector<size_t> &order) {
    shuffle(order);
    for (size_t lane : order) {
        if (lanes[lane].wait == Wait::None) {
            resume(lanes[lane]);
        }
    }
    int waiting = 0;
    for (int lane = 0; lane < 32; lane++) {
        waiting += lanes[lane].wait == Wait::Warp;
    }
    if (waiting == 0) {
        return false;
    }
    for (int lane = 0; lane < 32; lane++) {
        launch.current = lanes + lane;
        if (lanes[lane].wait != Wait::Warp) {
            fail("some lanes of a warp don't come to an operation of the warp");
        }
        if (lanes[lane].operation != lanes[0].operation) {
            fail("lanes of a warp are at different operations");
        }
    }
    lanes[0].operation(lanes);
    for (int lane = 0; lane < 32; lane++) {
        lanes[lane].wait = Wait::None;
    }
    return true;
}

// Between two barriers, warps run in an order that is drawn anew, and a warp mostly runs to the barrier before the next one
// starts. Memory accesses that a missing barrier should have ordered therefore happen out of order.
inline void run_block() {
    Launch &l = launch;
    std::vector<size_t> lanes(32), warps, standing;
    for (size_t i = 0; i < 32; i++) {
        lanes[i] = i;
    }
    for (;;) {
        warps.clear();
        for (size_t warp = 0; warp < l.block.x; warp += 32) {
            warps.push_back(warp);
        }
        while (!warps.empty()) {
            size_t at = draw() % warps.size();
            bool runs = true;
            do {
                runs = step_warp(&l.fibers[warps[at]], lanes);
            } while (runs && draw() % 64 != 0);
            if (!runs) {
                warps.erase(warps.begin() + at);
            }
        }
        size_t barrier = 0;
        for (size_t i = 0; i < l.block.x; i++) {
            barrier += l.fibers[i].wait == Wait::Barrier;
        }
        if (barrier == 0) {
            return;
        }
        if (barrier != l.block.x) {
            fail("some threads don't come to a barrier");
        }
        for (size_t i = 0; i < l.block.x; i++) {
            l.fibers[i].wait = Wait::None;
        }
    }
}

inline unsigned char *map(size_t bytes) {
    void *at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) {
        fail("there is no memory");
    }
    return static_cast<unsigned char *>(at);
}

inline int run(void (*body)(void **), const unsigned *grid, const unsigned *block, unsigned shared_bytes,
               unsigned long long seed, void **arguments) {
    Launch &l = launch;
    l.grid = Three{grid[0], grid[1], grid[2]};
    l.block = Three{block[0], block[1], block[2]};
    l.current = nullptr;
    l.at = Three{0, 0, 0};
    size_t threads = block[0];
    if (threads == 0 || threads % 32 != 0 || threads > 1024 || block[1] != 1 || block[2] != 1 || shared_bytes % 16 != 0) {
        fail("a block has 32 to 1,024 threads in x, whole warps, and whole 16 bytes of shared memory");
    }
    l.random = seed;
    l.body = body;
    l.arguments = arguments;
    size_t pages = (shared_bytes + PAGE - 1) / PAGE * PAGE;
    unsigned char *memory = map(pages + PAGE);
    mprotect(memory + pages, PAGE, PROT_NONE);
    // The start is aligned as kernels need it. This leaves less than 128 bytes at the end in which an access goes
    // unnoticed.
    l.shared = memory + pages - (shared_bytes + 127) / 128 * 128;
    if (l.stacks.count < threads) {
        l.stacks.clear();
        l.stacks.at = map(threads * STACK);
        l.stacks.count = threads;
        l.fibers = std::vector<Fiber>(threads);
    }

    std::vector<Three> blocks;
    for (unsigned z = 0; z < grid[2]; z++) {
        for (unsigned y = 0; y < grid[1]; y++) {
            for (unsigned x = 0; x < grid[0]; x++) {
                blocks.push_back(Three{x, y, z});
            }
        }
    }
    shuffle(blocks);
    for (Three at : blocks) {
        l.at = at;
        l.late_copies = draw() % 2 == 0;
        memset(memory, 0xff, pages);
        for (size_t i = 0; i < threads; i++) {
            Fiber &fiber = l.fibers[i];
            fiber.thread = Three{unsigned(i), 0, 0};
            fiber.wait = Wait::None;
            fiber.copies.assign(1, {});
        }
        run_block();
    }
    munmap(memory, pages + PAGE);
    return 0;
}

// Passes a kernel its arguments, which are given as pointers.
template <auto KERNEL> struct Call;
template <class... Arguments, void (*KERNEL)(Arguments...)> struct Call<KERNEL> {
    template <size_t... I> static void with(void **arguments, std::index_sequence<I...>) {
        KERNEL(*static_cast<std::remove_const_t<Arguments> *>(arguments[I])...);
    }
    static void body(void **arguments) { with(arguments, std::index_sequence_for<Arguments...>()); }
    static constexpr unsigned COUNT = sizeof...(Arguments);
};

} // namespace emulate

#define threadIdx (emulate::launch.current->thread)
#define blockIdx (emulate::launch.at)
#define blockDim (emulate::launch.block)
#define gridDim (emulate::launch.grid)

inline void __syncthreads() { emulate::pause(emulate::Wait::Barrier); }
inline void __threadfence() {}

// Blocks and threads run in turns, so these need not be atomic.
template <class T> T atomicAdd(T *at, T x) {
    T before = *at;
    *at += x;
    return before;
}
template <class T> T atomicMax(T *at, T x) {
    T before = *at;
    *at = x > before ? x : before;
    return before;
}
template <class T> T atomicExch(T *at, T x) { return std::exchange(*at, x); }

// emulate_NAME(grid, block, shared bytes, seed, pointers to the arguments, number of arguments) returns 0, or 1 if the
// kernel takes another number of arguments.
#define EMULATED(NAME)                                                                                                         \
    extern "C" int emulate_##NAME(const unsigned *grid, const unsigned *block, unsigned shared, unsigned long long seed,       \
                                  void **arguments, unsigned count) {                                                          \
        using Kernel = emulate::Call<&NAME>;                                                                                   \
        return count == Kernel::COUNT ? emulate::run(Kernel::body, grid, block, shared, seed, arguments) : 1;                  \
    }
