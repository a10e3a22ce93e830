// Rows added to the rows of a matrix, where an id may come more than once: always in the same order, without atomics.
// autograd/functions/embedding.py has the NumPy twin, `add_rows`. Equation (27) of docs/lstm_backward.md.

#define SORT_THREADS 256

// order = the places of ids (count), sorted by id and, among equal ones, by place.
//
// A place's position is the number of ids that stand before it, so each is compared with all others: 0.46 · 10⁹
// comparisons for a window of 21,504 words, less than a GPU makes in a tenth of a millisecond. Nothing has to be read
// back or allocated, as library sorts must, so that a graph can hold it.
extern "C" __global__ void sort_ids(const int* ids, int count, int* order) {
    __shared__ int tile[SORT_THREADS];
    const int i = blockIdx.x * SORT_THREADS + threadIdx.x, own = i < count ? ids[i] : 0;
    int position = 0;
    for (int start = 0; start < count; start += SORT_THREADS) {
        const int filled = count - start < SORT_THREADS ? count - start : SORT_THREADS;
        if (threadIdx.x < filled) tile[threadIdx.x] = ids[start + threadIdx.x];
        __syncthreads();
        for (int k = 0; k < filled; k++) position += tile[k] < own || (tile[k] == own && start + k < i);
        __syncthreads();
    }
    if (i < count) order[position] = i;
}

// target[w] += factor[0] · word_scale[w] · sum over n with ids[n] = w of weights[n] · rows[n], summed in the order of n
// and rounded once. One block a position in `order`: that where a word begins sums it, the others have nothing to do.
// Ids below 0 are no words. weights, word_scale and factor may be null.
extern "C" __global__ void add_rows(T* target, int width, const int* ids, const int* order, int count, const T* rows,
                                    long long stride, const real* weights, const T* word_scale, const real* factor) {
    const int first = blockIdx.x, w = ids[order[first]];
    if (w < 0 || (first > 0 && ids[order[first - 1]] == w)) return;
    int end = first + 1;
    while (end < count && ids[order[end]] == w) end++;
    real scale = factor ? factor[0] : real(1);
    if (word_scale) scale *= load(word_scale, w);
    for (int k = threadIdx.x; k < width; k += blockDim.x) {
        real sum = 0;
#pragma unroll 4
        for (int place = first; place < end; place++) {
            const int n = order[place];
            const real value = load(rows, n * stride + k);
            sum += weights ? weights[n] * value : value;
        }
        const long long at = (long long)w * width + k;
        store(target, at, load(target, at) + scale * sum);
    }
}
