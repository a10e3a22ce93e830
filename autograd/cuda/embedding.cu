// Rows added to the rows of a matrix, where an id may come more than once: always in the same order, without atomics.
// autograd/functions/embedding_kernels.py has the NumPy twins. Equation (27) of docs/lstm_backward.md.

#define SORT_THREADS 256
#define CHUNK 8

// order = the places of ids (count), sorted by id and, among equal ones, by place; words = the ids in that order.
//
// A place's position is the number of ids that stand before it, so each is compared with all others: 0.46 · 10⁹
// comparisons for a window of 21,504 words, less than a GPU makes in a tenth of a millisecond. Nothing has to be read
// back or allocated, as library sorts must, so that a graph can hold it.
extern "C" __global__ void sort_ids(const int* ids, int count, int* order, int* words) {
    __shared__ int tile[SORT_THREADS];
    const int first = blockIdx.x * SORT_THREADS, i = first + threadIdx.x, own = i < count ? ids[i] : 0;
    int position = 0;
    for (int start = 0; start < count; start += SORT_THREADS) {
        const int filled = count - start < SORT_THREADS ? count - start : SORT_THREADS;
        if (threadIdx.x < filled) tile[threadIdx.x] = ids[start + threadIdx.x];
        __syncthreads();
        const int earlier = start < first ? filled : start > first ? 0 : threadIdx.x;  // of the tile, than i
        for (int k = 0; k < earlier; k++) position += tile[k] <= own;
        for (int k = earlier; k < filled; k++) position += tile[k] < own;
        __syncthreads();
    }
    if (i < count) {
        order[position] = i;
        words[position] = own;
    }
}

// target[w] += factor[0] · word_scale[w] · sum, rounded once; ids below 0 are no words.
DEVICE void add_sum(T* target, int width, int w, int k, real sum, const T* word_scale, const real* factor) {
    if (w < 0) return;
    if (word_scale) sum *= load(word_scale, w);
    if (factor) sum *= factor[0];
    const long long at = (long long)w * width + k;
    store(target, at, load(target, at) + sum);
}

// Does the word at position p stand at p - 1 too?
DEVICE bool goes_on(const int* words, int p, int count) { return p > 0 && p < count && words[p - 1] == words[p]; }

// target[w] += scale of w · sum over n with ids[n] = w of weights[n] · rows[n], where the n of one word are a run of
// positions in `order`. A block sums CHUNK positions in their order, so that a word as frequent as `the` keeps no
// block longer than others. What of a run lies in other chunks too is left in `partial` (chunks, 2, width): [0] of the
// run that comes from the chunk before, [1] of one that begins here and goes on. weights, word_scale and factor may
// be null.
extern "C" __global__ void add_rows(T* target, int width, const int* order, const int* words, int count,
                                    const T* __restrict__ rows, long long stride, const real* __restrict__ weights,
                                    const T* word_scale, const real* factor, real* partial) {
    const int begin = blockIdx.x * CHUNK, end = begin + CHUNK < count ? begin + CHUNK : count;
    real* own_partial = partial + 2LL * blockIdx.x * width;
    for (int k = threadIdx.x; k < width; k += blockDim.x) {
        real values[CHUNK], sum = 0;
#pragma unroll
        for (int p = 0; p < CHUNK; p++) {  // all on their way before the first is needed
            const int n = begin + p < end ? order[begin + p] : -1;
            values[p] = n < 0 ? real(0) : weights ? weights[n] * load(rows, n * stride + k) : load(rows, n * stride + k);
        }
        bool from_before = goes_on(words, begin, count);
#pragma unroll
        for (int p = 0; p < CHUNK; p++) {
            if (begin + p >= end) break;
            sum += values[p];
            const bool last = begin + p + 1 == end, continued = goes_on(words, begin + p + 1, count);
            if (continued && !last) continue;
            if (from_before)
                own_partial[k] = sum;
            else if (continued)
                own_partial[width + k] = sum;
            else
                add_sum(target, width, words[begin + p], k, sum, word_scale, factor);
            sum = 0;
            from_before = false;
        }
    }
}

// The sums of the runs that lie in more than one chunk, from their parts, in order: by the block of the chunk in which
// a run begins.
extern "C" __global__ void join_runs(T* target, int width, const int* words, int count, const T* word_scale,
                                     const real* factor, const real* __restrict__ partial) {
    const int begin = blockIdx.x * CHUNK, last = begin + CHUNK - 1;
    if (!goes_on(words, last + 1, count)) return;
    const int w = words[last];
    if (words[begin] == w && goes_on(words, begin, count)) return;  // it began before
    int low = last + 1, high = count;  // words[low] is w, words[high] is not
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (words[middle] == w) low = middle;
        else high = middle;
    }
    const int chunks = low / CHUNK - blockIdx.x;  // after this one
    for (int k = threadIdx.x; k < width; k += blockDim.x) {
        const real* part = partial + 2LL * blockIdx.x * width + k;
        real sum = part[width];
#pragma unroll 8
        for (int c = 1; c <= chunks; c++) sum += part[2LL * c * width];
        add_sum(target, width, w, k, sum, word_scale, factor);
    }
}
