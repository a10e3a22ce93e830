// A CUDA kernel on the CPU: this header in front of its source, and g++ compiles it.
//
// A block is run by one fiber per CUDA thread, blocks one after the other. A fiber runs until it meets a
// barrier (__syncthreads, __syncwarp, a shuffle), where it waits for the others as a thread would, so a missing
// barrier lets a fiber read what nobody has written yet. Which fiber goes next is the schedule's to say: the
// first that can, the last, or any (blocks then go forward, backward, in any order). A result that depends on the
// schedule is a race. Shared memory begins as not-a-numbers in every block. Fibers that wait at different
// barriers, or for one that has ended, are an error, which on a GPU would be a hang or nonsense.
// Not here: tensor cores, atomics, races between blocks that run at once, speed.
#pragma once
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <utility>

#define __global__
#define __device__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__
#define DEVICE __attribute__((unused)) static inline
#define __shared__ static __attribute__((section("shared_memory")))
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(host::dynamic_shared)

typedef _Float16 __half;
struct dim3 { unsigned x = 1, y = 1, z = 1; };
static dim3 threadIdx, blockIdx, blockDim, gridDim;

extern "C" char __start_shared_memory[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_shared_memory[] __attribute__((weak, visibility("hidden")));

namespace host {

const int WARP = 32;
const int MAX_THREADS = 1024, MAX_SHARED = 48 << 10;
const size_t STACK = 1 << 16;
enum State { READY, AT_BLOCK, AT_WARP, HAVING_READ, DONE };

struct Fiber {
    void* stack;         // made when the fiber first runs, as one that lives for ever
    jmp_buf where;       // in its code it goes on; switching so costs no call of the system, unlike swapcontext
    dim3 thread;
    State state;
    const char* place;   // of the barrier at which it waits
    unsigned mask;       // of the lanes for which it waits
    uint64_t exchanged;  // what it gives to the other lanes
};

static Fiber fibers[MAX_THREADS];
static int num_threads, current;
static char dynamic_shared[MAX_SHARED] __attribute__((aligned(16)));
static jmp_buf scheduler;
static int waiting;  // threads at a barrier of the block
static int cursor;   // before it, in the order of the schedule, no fiber is ready
static char error[1000];
static void (*body)();

static void yield() {
    if (!_setjmp(fibers[current].where)) _longjmp(scheduler, 1);
}

static void release_block() {
    if (++waiting < num_threads) return;
    for (int k = 0; k < num_threads; k++)
        if (fibers[k].place != fibers[current].place) return;
    for (int k = 0; k < num_threads; k++) fibers[k].state = READY;
    waiting = cursor = 0;
}

static void release_warp() {
    int first = current / WARP * WARP, last = first + WARP < num_threads ? first + WARP : num_threads;
    const Fiber& own = fibers[current];
    if (last - first < WARP && own.mask >> (last - first)) return;  // of lanes that the block does not have
    for (int k = first; k < last; k++) {
        const Fiber& f = fibers[k];
        if (own.mask >> (k - first) & 1 && (f.state != own.state || f.place != own.place || f.mask != own.mask)) return;
    }
    for (int k = first; k < last; k++)
        if (own.mask >> (k - first) & 1) fibers[k].state = READY;
    cursor = 0;
}

static void wait(State where, const char* place, unsigned mask = ~0u) {
    Fiber& own = fibers[current];
    own.state = where, own.place = place, own.mask = mask;
    where == AT_BLOCK ? release_block() : release_warp();
    yield();
}

// Every lane of the mask gives its value and takes that of lane `from`; both barriers are of the warp alone.
template <class V>
static V shuffle(unsigned mask, V value, int from, const char* place) {
    static_assert(sizeof(V) <= 8, "a shuffle takes at most eight bytes");
    int first = current / WARP * WARP, lane = current - first;
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(V));
    fibers[current].exchanged = bits;
    wait(AT_WARP, place, mask);
    V result = value;
    if (from >= 0 && from < WARP && from != lane) {
        uint64_t given = mask >> from & 1 ? fibers[first + from].exchanged : ~0ull;
        memcpy(&result, &given, sizeof(V));
    }
    wait(HAVING_READ, place, mask);
    return result;
}

static unsigned ballot(unsigned mask, bool predicate, const char* place) {
    int first = current / WARP * WARP;
    fibers[current].exchanged = predicate;
    wait(AT_WARP, place, mask);
    unsigned result = 0;
    for (int k = first; k < num_threads && k < first + WARP; k++)
        if (mask >> (k - first) & 1 && fibers[k].exchanged) result |= 1u << (k - first);
    wait(HAVING_READ, place, mask);
    return result;
}

static unsigned random(unsigned below) {
    static uint64_t state = 88172645463325252ull;
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return unsigned(state >> 33) % below;
}

static void entry() {
    for (;;) {
        body();
        fibers[current].state = DONE;
        yield();
    }
}

static void start(Fiber& f) {
    ucontext_t context;
    getcontext(&context);
    f.stack = malloc(STACK);
    context.uc_stack.ss_sp = f.stack, context.uc_stack.ss_size = STACK;
    makecontext(&context, entry, 0);
    setcontext(&context);
}

__attribute__((noinline)) static void resume(Fiber& f) {
    threadIdx = f.thread;
    if (_setjmp(scheduler)) return;
    f.stack ? _longjmp(f.where, 1) : start(f);
}

static bool find_ready(int schedule) {
    int begin = schedule == 2 ? int(random(num_threads)) : cursor;
    for (int k = begin; k < begin + num_threads; k++) {
        current = schedule == 1 ? num_threads - 1 - k % num_threads : k % num_threads;
        if (fibers[current].state == READY) return cursor = k % num_threads, true;
    }
    return false;
}

static void describe_stuck() {
    int used = snprintf(error, sizeof error, "threads wait for each other in vain:");
    for (int k = 0, told = 0; k < num_threads && told < 4; k++) {
        const Fiber &f = fibers[k], &before = fibers[k - (k > 0)];
        if (k && f.state == before.state && (f.state == DONE || f.place == before.place)) continue;
        const char* where = f.state == AT_BLOCK ? "is at __syncthreads, " : "is at a barrier of its warp, ";
        used += snprintf(error + used, sizeof error - used, "%s thread %d %s%s", told++ ? ";" : "", k,
                         f.state == DONE ? "has ended" : where, f.state == DONE ? "" : f.place);
    }
}

static bool run_block(int schedule, size_t shared_bytes) {
    if (&__start_shared_memory[0]) memset(__start_shared_memory, 0xff, __stop_shared_memory - __start_shared_memory);
    memset(dynamic_shared, 0xff, shared_bytes);
    for (int k = 0; k < num_threads; k++) {
        unsigned n = unsigned(k);
        fibers[k].thread = {n % blockDim.x, n / blockDim.x % blockDim.y, n / blockDim.x / blockDim.y};
        fibers[k].state = READY;
    }
    waiting = cursor = 0;
    while (find_ready(schedule)) resume(fibers[current]);
    bool whole = true;
    for (int k = 0; k < num_threads; k++) whole = whole && fibers[k].state == DONE;
    if (!whole) {
        describe_stuck();
        for (auto& f : fibers) f.stack = nullptr;  // those in the middle of something are given up
    }
    return whole;
}

static unsigned coprime(unsigned n) {  // a step that meets every block once, in another order
    for (unsigned step = n / 2 + 1;; step++) {
        unsigned a = step, b = n;
        while (b) a %= b, std::swap(a, b);
        if (a == 1) return step;
    }
}

static const char* run(const unsigned* grid, const unsigned* block, size_t shared_bytes, int schedule) {
    gridDim = {grid[0], grid[1], grid[2]}, blockDim = {block[0], block[1], block[2]};
    num_threads = int(block[0] * block[1] * block[2]);
    unsigned blocks = grid[0] * grid[1] * grid[2];
    size_t all_shared = shared_bytes + (__stop_shared_memory - __start_shared_memory);
    if (num_threads > MAX_THREADS || all_shared > MAX_SHARED) return "more threads or shared memory than a block has";
    for (unsigned n = 0, step = schedule == 2 ? coprime(blocks) : 1; n < blocks; n++) {
        unsigned k = unsigned(uint64_t(n) * step % blocks);
        k = schedule == 1 ? blocks - 1 - k : k;
        blockIdx = {k % grid[0], k / grid[0] % grid[1], k / grid[0] / grid[1]};
        if (!run_block(schedule, shared_bytes)) return error;
    }
    return nullptr;
}

static void** arguments;
template <class... A, size_t... K>
static void call(void (*kernel)(A...), std::index_sequence<K...>) { kernel(*static_cast<A*>(arguments[K])...); }
template <class... A>
static void call(void (*kernel)(A...)) { call(kernel, std::index_sequence_for<A...>{}); }

}  // namespace host

// Called by ctypes: null, or what went wrong.
#define HOST_KERNEL(name) \
    extern "C" const char* host_##name(void** args, const unsigned* grid, const unsigned* block, size_t shared, int schedule) { \
        host::arguments = args; \
        host::body = [] { host::call(name); }; \
        return host::run(grid, block, shared, schedule); \
    }

#define HOST_TEXT(x) #x
#define HOST_STRING(x) HOST_TEXT(x)
#define HOST_PLACE __FILE__ ":" HOST_STRING(__LINE__)
#define __syncthreads() host::wait(host::AT_BLOCK, HOST_PLACE)
#define __syncwarp(...) host::wait(host::AT_WARP, HOST_PLACE, host::mask_of(__VA_ARGS__))
#define __shfl_sync(mask, value, from) host::shuffle(mask, value, from, HOST_PLACE)
#define __shfl_xor_sync(mask, value, lanes) host::shuffle(mask, value, (host::current % 32) ^ (lanes), HOST_PLACE)
#define __shfl_down_sync(mask, value, by) host::shuffle(mask, value, host::current % 32 + (by), HOST_PLACE)
#define __shfl_up_sync(mask, value, by) host::shuffle(mask, value, host::current % 32 - int(by), HOST_PLACE)
#define __ballot_sync(mask, predicate) host::ballot(mask, predicate, HOST_PLACE)
#define __any_sync(mask, predicate) (host::ballot(mask, predicate, HOST_PLACE) != 0)
#define __all_sync(mask, predicate) (host::ballot(mask, !(predicate), HOST_PLACE) == 0)
#define __threadfence() ((void)0)
#define __ldg(pointer) (*(pointer))

namespace host {
__attribute__((unused)) static unsigned mask_of(unsigned mask = ~0u) { return mask; }
}

// CUDA's mathematics: one name for float and double.
#define HOST_MATH(name) \
    extern "C" double name(double) noexcept; \
    DEVICE float name(float x) { return __builtin_##name##f(x); }
HOST_MATH(exp) HOST_MATH(log) HOST_MATH(tanh) HOST_MATH(sqrt) HOST_MATH(fabs) HOST_MATH(floor) HOST_MATH(log2) HOST_MATH(exp2)
extern "C" double pow(double, double) noexcept;
#define HOST_MATH_F(name) DEVICE float name##f(float x) { return __builtin_##name##f(x); }
HOST_MATH_F(exp) HOST_MATH_F(log) HOST_MATH_F(tanh) HOST_MATH_F(sqrt) HOST_MATH_F(fabs)
DEVICE float rsqrt(float x) { return 1 / sqrt(x); }
DEVICE double rsqrt(double x) { return 1 / sqrt(x); }
DEVICE float rsqrtf(float x) { return 1 / sqrt(x); }
template <class X> DEVICE X min(X a, X b) { return b < a ? b : a; }
template <class X> DEVICE X max(X a, X b) { return a < b ? b : a; }
DEVICE float fminf(float a, float b) { return __builtin_fminf(a, b); }
DEVICE float fmaxf(float a, float b) { return __builtin_fmaxf(a, b); }
template <class X> DEVICE bool isfinite(X x) { return __builtin_isfinite(x); }
template <class X> DEVICE bool isnan(X x) { return __builtin_isnan(x); }
DEVICE float __half2float(__half x) { return float(x); }
DEVICE __half __float2half_rn(float x) { return __half(x); }
DEVICE __half __float2half(float x) { return __half(x); }
DEVICE unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
