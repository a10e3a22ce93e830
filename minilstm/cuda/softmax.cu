// The rows of a softmax over words, its loss and its gradient. minilstm/softmax_kernels.py has the NumPy twins and
// says what each is for; numbers in brackets are the equations of docs/lstm_backward.md.
//
// `stride` is the length of a row in memory, a multiple of 64: every row begins on 16 bytes at least.

#define MAX_ROW_THREADS 1024
#define MEAN_THREADS 256

// A sum of exponentials, worth s · exp(m): m is the largest exponent seen, so that s never overflows (Milakov and
// Gimelshein 2018, arXiv 1805.02867).
struct ExpSum {
    real m, s;
};

DEVICE ExpSum add_sums(ExpSum x, ExpSum y) {
    real m = x.m > y.m ? x.m : y.m;
    ExpSum sum = {m, x.s * exp(x.m - m) + y.s * exp(y.m - m)};
    return sum;
}

// The sum over a block of whole warps, given to every thread: a fixed tree, so the same bits at every run.
DEVICE ExpSum add_over_block(ExpSum own) {
    __shared__ real m[MAX_ROW_THREADS / WARP], s[MAX_ROW_THREADS / WARP];
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) {
        ExpSum other = {__shfl_xor_sync(ALL_LANES, own.m, lanes), __shfl_xor_sync(ALL_LANES, own.s, lanes)};
        own = add_sums(own, other);
    }
    if (threadIdx.x % WARP == 0) {
        m[threadIdx.x / WARP] = own.m;
        s[threadIdx.x / WARP] = own.s;
    }
    __syncthreads();
    ExpSum total = {m[0], s[0]};
    for (int warp = 1; warp < blockDim.x / WARP; warp++) {
        ExpSum other = {m[warp], s[warp]};
        total = add_sums(total, other);
    }
    return total;
}

// The logits of a pack with what is added to them, in `real`; the largest of them and `least`.
DEVICE real read_logits(const Pack& pack, const real* shift, int p, real least, real* l) {
    for (int k = 0; k < PACK; k++) {
        l[k] = load(pack.at, k);
        if (shift) l[k] += shift[p * PACK + k];
        least = l[k] > least ? l[k] : least;
    }
    return least;
}

// One block a row n of `logits` (rows, stride), the first `columns` of which are words:
//
//     losses[n] = log(e^t + sum_v e^l_v) - t          t = target_logits[n], l_v = logits[n, v] + shift[v]
//     slopes[n] = e^t / (e^t + sum_v e^l_v) - 1
//     logits[n, v] becomes scale · e^l_v / (e^t + sum_v e^l_v)
//
// v runs over all words but places[n], the target's own column, or -1 if it has none: in its place stands t, which
// nothing has rounded. What that column becomes is scale · slopes[n] if `target_in_block`, else 0. A row whose
// target is -1 is not scored: loss, slope and row become 0. `shift` (stride) may be null. Without `gradient` the
// logits are left undefined.
extern "C" __global__ void __launch_bounds__(MAX_ROW_THREADS)
softmax_rows(T* logits, long long stride, int columns, const real* shift, const int* targets, const int* places,
             const real* target_logits, int target_in_block, int gradient, real scale, real* losses, real* slopes) {
    const int n = blockIdx.x, thread = threadIdx.x, threads = blockDim.x, packs = (int)(stride / PACK);
    T* row = logits + n * stride;
    Pack* packed = reinterpret_cast<Pack*>(row);
    if (targets[n] < 0) {
        if (gradient)
            for (int v = thread; v < stride; v += threads) store(row, v, real(0));
        if (thread == 0) losses[n] = slopes[n] = real(0);
        return;
    }
    // What does not count gets a logit whose exponential is 0, and the loops below need not look.
    const real nothing = real(-1e30);
    const int place = places[n];
    for (int v = columns + thread; v < stride; v += threads) store(row, v, nothing);
    if (thread == 0 && place >= 0) store(row, place, nothing);
    __syncthreads();

    real l[PACK];
    const real t = target_logits[n];
    ExpSum own = {t, thread == 0 ? real(1) : real(0)};  // e^t, once
    for (int p = thread; p < packs; p += threads) {
        const Pack pack = packed[p];  // in one access
        const real largest = read_logits(pack, shift, p, own.m, l);
        if (largest > own.m) {
            own.s *= exp(own.m - largest);
            own.m = largest;
        }
        for (int k = 0; k < PACK; k++) own.s += exp(l[k] - own.m);  // (20), (21)
    }
    const ExpSum total = add_over_block(own);
    const real slope = exp(t - total.m) / total.s - real(1);  // (69)
    if (thread == 0) {
        losses[n] = (total.m - t) + log(total.s);  // (22), (68)
        slopes[n] = slope;
    }
    if (!gradient) return;
    // From the end: what was read last is the likeliest to be in the cache still.
    const real factor = scale / total.s;
    for (int p = packs - 1 - thread; p >= 0; p -= threads) {
        Pack pack = packed[p];
        read_logits(pack, shift, p, t, l);
        for (int k = 0; k < PACK; k++) store(pack.at, k, exp(l[k] - total.m) * factor);
        packed[p] = pack;
    }
    __syncthreads();
    if (thread == 0 && place >= 0 && target_in_block) store(row, place, slope * scale);
}

// One warp a row: logits[n] = sum_k h[n, k] W[targets[n], k] + bias[n]; 0 where the target is -1. bias may be null.
extern "C" __global__ void target_logits(const T* h, long long h_stride, const T* W, long long W_stride, int width,
                                         const int* targets, const real* bias, int rows, real* logits) {
    const int n = (blockIdx.x * blockDim.x + threadIdx.x) / WARP, lane = threadIdx.x % WARP;
    if (n >= rows) return;  // whole warps do
    const int y = targets[n];
    real sum = 0;
    if (y >= 0)
        for (int k = lane; k < width; k += WARP) sum += load(h, n * h_stride + k) * load(W, y * W_stride + k);
    sum = warp_sum(sum);
    if (lane == 0) logits[n] = y < 0 ? real(0) : bias ? sum + bias[n] : sum;
}

// One block a row: dh[n] += slopes[n] W[targets[n]], the target's part of (70) where it has no column.
extern "C" __global__ void add_target_rows(real* dh, long long dh_stride, const T* W, long long W_stride, int width,
                                           const int* targets, const real* slopes) {
    const int n = blockIdx.x, y = targets[n];
    if (y < 0) return;
    for (int k = threadIdx.x; k < width; k += blockDim.x)
        dh[n * dh_stride + k] += slopes[n] * load(W, y * W_stride + k);
}

// One block: count[0] = the targets that are not -1, but 1 at least, and mean[0] = sum(losses) / count[0]. Summed in
// double, in a fixed order.
extern "C" __global__ void mean_loss(const real* losses, const int* targets, int rows, real* mean, real* count) {
    __shared__ double sums[MEAN_THREADS];
    __shared__ int counts[MEAN_THREADS];
    double sum = 0;
    int scored = 0;
    for (int n = threadIdx.x; n < rows; n += MEAN_THREADS) {
        sum += losses[n];
        scored += targets[n] >= 0;
    }
    sums[threadIdx.x] = sum;
    counts[threadIdx.x] = scored;
    for (int half = MEAN_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) {
            sums[threadIdx.x] += sums[threadIdx.x + half];
            counts[threadIdx.x] += counts[threadIdx.x + half];
        }
    }
    if (threadIdx.x == 0) {
        const int number = counts[0] > 0 ? counts[0] : 1;
        mean[0] = (real)(sums[0] / number);
        count[0] = (real)number;
    }
}

// One block a row of `packed`: [rows[w], column[w], 0 …], where w is ids[i], or i without ids; all 0 from row `count`
// on. Without `column` the constant stands there.
extern "C" __global__ void pack_rows(const T* __restrict__ rows, int width, const T* column, real constant,
                                     const int* ids, int count, T* __restrict__ packed, long long stride) {
    const int i = blockIdx.x;
    const long long w = i < count && ids ? ids[i] : i;
#pragma unroll 4
    for (int k = threadIdx.x; k < stride; k += blockDim.x) {
        real value = 0;
        if (i < count && k < width) value = load(rows, w * width + k);
        if (i < count && k == width) value = column ? load(column, w) : constant;
        store(packed, i * stride + k, value);
    }
}

// The way back: rows[w] = factor[0] · packed[i, :width] and column[w] = factor[0] · packed[i, width], or += where asked
// to add, rounded once. rows or column may be null. The ids are all different.
extern "C" __global__ void unpack_rows(const real* __restrict__ packed, long long stride, const int* ids,
                                       const real* factor, T* __restrict__ rows, int width, int add_to_rows,
                                       T* column, int add_to_column) {
    const int i = blockIdx.x, columns = rows ? width : 0;
    const long long w = ids ? ids[i] : i;
    const real scale = factor[0];
#pragma unroll 4
    for (int k = threadIdx.x; k < columns; k += blockDim.x) {
        const real value = packed[i * stride + k] * scale;
        store(rows, w * width + k, add_to_rows ? load(rows, w * width + k) + value : value);
    }
    if (threadIdx.x == 0 && column) {
        const real value = packed[i * stride + width] * scale;
        store(column, w, add_to_column ? load(column, w) + value : value);
    }
}
