// Dropout masks, drawn where they are used; the NumPy twin is minilstm/dropout.py, and the bits are its bits.
// Equation numbers are those of docs/lstm_backward.md. One thread takes one tick of the Philox counter: 16
// neighbouring elements of a mask, of 16 random bits each.

// The window's number lies in memory: a graph that has captured a launch draws the masks of the next window.

typedef unsigned long long uint64;
const int PER_TICK = 16;

struct Tick {
    uint64 words[4];
};

// Bit k says whether element k of the 16 is kept: if its draw is among the lowest levels.
DEVICE unsigned kept_of(const Tick& drawn, int levels) {
    unsigned kept = 0;
    for (int k = 0; k < PER_TICK; k++) {
        int draw = drawn.words[k / 4] >> (16 * (k % 4)) & 0xffff;
        kept |= unsigned(draw < levels) << k;  // (30)
    }
    return kept;
}

// Philox4x64-10 (Salmon et al. 2011) with the key (seed, place), as numpy.random.Philox has it, which counts up
// before it draws: the first tick after a counter of `count` has count + 1.
DEVICE Tick philox(uint64 count, uint64 step, uint64 window, uint64 seed, uint64 place) {
    uint64 w0 = count + 1, w1 = step, w2 = 0, w3 = window;
    for (int round = 0; round < 10; round++) {
        uint64 low0 = 0xD2E7470EE14C6C93ull * w0, high0 = __umul64hi(0xD2E7470EE14C6C93ull, w0);
        uint64 low1 = 0xCA5A826395121157ull * w2, high1 = __umul64hi(0xCA5A826395121157ull, w2);
        w0 = high1 ^ w1 ^ seed, w1 = low1, w2 = high0 ^ w3 ^ place, w3 = low0;
        seed += 0x9E3779B97F4A7C15ull, place += 0xBB67AE8584CAA73Bull;
    }
    return {{w0, w1, w2, w3}};
}

// y = x times a mask over weights, over activations (T, B, units) locked or per step; without x the mask itself.
//   x, y      (steps, elements)
//   skipped   elements of the step's mask before the first: those of the ranks before
//   per_step  1: each step has a mask of its own, 0: all have the first one's
//   first_step  the number, within the window, of the first step here
// Grid: the ticks of a step, steps.
extern "C" __global__ void dropout(
    const T* x, T* y, long long elements, int per_step, int first_step, long long skipped, const unsigned long long* window,
    unsigned long long seed, unsigned long long place, int levels, real scale
) {
    long long tick = skipped / PER_TICK + (long long)blockIdx.x * blockDim.x + threadIdx.x;
    unsigned kept = kept_of(philox(tick, per_step ? first_step + blockIdx.y : 0, *window, seed, place), levels);
    // A warp's ticks are 512 neighbouring elements. Each lane takes every 32nd of them, and is told its bit by the
    // lane that drew it: what the lanes touch at once lies side by side.
    int lane = threadIdx.x % WARP;
    long long first = (tick - lane) * PER_TICK - skipped;  // of the warp; before 0 if a tick is shared with a rank
    for (int j = 0; j < PER_TICK; j++) {
        unsigned bits = __shfl_sync(ALL_LANES, kept, (j * WARP + lane) / PER_TICK);
        long long element = first + j * WARP + lane;
        if (element < 0 || element >= elements) continue;
        size_t at = size_t(blockIdx.y) * elements + element;
        real mask = bits >> lane % PER_TICK & 1 ? scale : real(0);
        store(y, at, x ? load(x, at) * mask : mask);  // (31), (32)
    }
}

// y = x times, for every word, its row of a mask over the table of all words, each row with ticks of its own.
//   x, y  (words, width)
//   ids   (words)
// One thread a tick of a word.
extern "C" __global__ void lookup_dropout(
    const T* x, T* y, const long long* ids, long long words, int width, const unsigned long long* window,
    unsigned long long seed, unsigned long long place, int levels, real scale
) {
    int ticks = (width + PER_TICK - 1) / PER_TICK;
    long long thread = (long long)blockIdx.x * blockDim.x + threadIdx.x, word = thread / ticks;
    int tick = thread % ticks;
    if (word >= words) return;
    unsigned kept = kept_of(philox(ids[word] * ticks + tick, 0, *window, seed, place), levels);
    for (int k = 0; k < PER_TICK && tick * PER_TICK + k < width; k++) {
        size_t at = size_t(word) * width + tick * PER_TICK + k;
        store(y, at, load(x, at) * (kept >> k & 1 ? scale : real(0)));  // (34)
    }
}
