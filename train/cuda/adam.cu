// The update of all parameters over their flat buffers, and the norm that it is clipped by. The NumPy twins are in
// train/optimizers.py. Nothing here is told to the host: what one kernel decides, the next reads in device memory.

#define NORM_THREADS 256

// Places in `controls`; train/update_kernels.py has the same.
#define LEARNING_RATE 0
#define UNSCALE 1
#define MAX_NORM 2
#define NORM 3
#define LARGEST 4
#define FINITE 5
#define UPDATES 6

// A sum and a maximum over a block of NORM_THREADS, in thread 0, always in the same order.
struct Sums {
    double sum, largest;
};

DEVICE Sums over_block(double sum, double largest) {
    __shared__ double sums[NORM_THREADS], maxima[NORM_THREADS];
    const int thread = threadIdx.x;
    sums[thread] = sum;
    maxima[thread] = largest;
    for (int half = NORM_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (thread < half) {
            sums[thread] += sums[thread + half];
            if (maxima[thread + half] > maxima[thread]) maxima[thread] = maxima[thread + half];
        }
    }
    Sums both = {sums[thread], maxima[thread]};
    return both;
}

// partial[0, block] = the sum of x² over the block's elements, partial[1, block] = the largest |x|. The squares of 16
// bytes of elements are summed in `real`, all else in double, in an order that depends on the numbers of blocks and of
// elements alone.
extern "C" __global__ void sum_of_squares(const T* __restrict__ x, long long size, double* partial) {
    const bool aligned = reinterpret_cast<size_t>(x) % sizeof(Pack) == 0;
    double sum = 0;
    real largest = 0;
#pragma unroll 4
    for (long long p = (long long)blockIdx.x * NORM_THREADS + threadIdx.x; p * PACK < size;
         p += (long long)gridDim.x * NORM_THREADS) {
        Pack pack;
        if (aligned && (p + 1) * PACK <= size)
            pack = reinterpret_cast<const Pack*>(x)[p];
        else
            for (int k = 0; k < PACK; k++) store(pack.at, k, p * PACK + k < size ? load(x, p * PACK + k) : real(0));
        real squares = 0;
        for (int k = 0; k < PACK; k++) {
            const real value = load(pack.at, k), magnitude = value < 0 ? -value : value;
            squares += value * value;
            largest = magnitude > largest ? magnitude : largest;
        }
        sum += squares;
    }
    const Sums both = over_block(sum, largest);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = both.sum;
        partial[gridDim.x + blockIdx.x] = both.largest;
    }
}

// One thread, before the gradients are measured. `finite` still says how the step before ended: if it made no update,
// the schedule has not gone on, and `rate_after_skip` is this update's. `scale` is the loss scale that is still in the
// gradients, or null.
extern "C" __global__ void begin_update(double* controls, double rate, double rate_after_skip, double max_norm,
                                        const double* scale) {
    controls[LEARNING_RATE] = controls[FINITE] != 0.0 ? rate : rate_after_skip;
    controls[UNSCALE] = scale ? 1.0 / scale[0] : 1.0;
    controls[MAX_NORM] = max_norm;
}

// One block: norm and, unless asked to keep it, largest of the gradients without the loss scale; and whether the norm
// is finite.
extern "C" __global__ void finish_norm(const double* partial, int count, int keep_largest, double* controls) {
    double sum = 0, largest = 0;
    for (int i = threadIdx.x; i < count; i += NORM_THREADS) {
        sum += partial[i];
        largest = partial[count + i] > largest ? partial[count + i] : largest;
    }
    const Sums both = over_block(sum, largest);
    if (threadIdx.x > 0) return;
    const double norm = sqrt(both.sum) * controls[UNSCALE];
    controls[NORM] = norm;
    if (!keep_largest) controls[LARGEST] = both.largest * controls[UNSCALE];
    controls[FINITE] = norm - norm == 0.0;  // neither infinite nor no number
}

// What the gradients are multiplied with: without the loss scale, and clipped to MAX_NORM unless that is 0.
DEVICE double gradient_scale(const double* controls) {
    const double norm = controls[NORM], most = controls[MAX_NORM];
    return controls[UNSCALE] * (most > 0.0 && norm > most ? most / norm : 1.0);
}

// One thread, before `adam_update`: counts the update and computes what is the same for all elements. Nothing at all
// if the gradients are not finite.
extern "C" __global__ void adam_coefficients(double* controls, double beta1, double beta2, double epsilon,
                                             double weight_decay, real* coefficients) {
    if (controls[FINITE] == 0.0) return;
    const double t = controls[UPDATES] += 1.0, rate = controls[LEARNING_RATE], scale = gradient_scale(controls);
    const double correction = sqrt(1.0 - pow(beta2, t));
    coefficients[0] = (real)(1.0 - rate * weight_decay);
    coefficients[1] = (real)(scale * (1.0 - beta1));
    coefficients[2] = (real)(scale * sqrt(1.0 - beta2));
    coefficients[3] = (real)(epsilon * correction);
    coefficients[4] = (real)(rate * correction / (1.0 - pow(beta1, t)));
}

// m ← β₁ m + (1 - β₁) g        v ← β₂ v + (1 - β₂) g²        p ← shrink p - step m / (√v + ε'), and copy ← p rounded
//
// The gradients are of the model's type (`gradients`), or of the masters' (`master_gradients`); the other is null.
// copy may be null.
extern "C" __global__ void adam_update(const T* gradients, const real* master_gradients, real* p, real* m, real* v,
                                       T* copy, real beta1, real beta2, const real* coefficients,
                                       const double* controls, long long size) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size || controls[FINITE] == 0.0) return;
    const real g = gradients ? load(gradients, i) : master_gradients[i], weighted = g * coefficients[2];
    const real m_i = beta1 * m[i] + coefficients[1] * g;
    const real v_i = beta2 * v[i] + weighted * weighted;
    const real p_i = coefficients[0] * p[i] - coefficients[4] * (m_i / (sqrt(v_i) + coefficients[3]));
    m[i] = m_i;
    v[i] = v_i;
    p[i] = p_i;
    if (copy) store(copy, i, p_i);
}

// One thread, before `sgd_update`; `trigger`: updates made before averaging began, or -1.
extern "C" __global__ void sgd_coefficients(double* controls, double weight_decay, long long trigger,
                                            real* coefficients) {
    if (controls[FINITE] == 0.0) return;
    const double t = controls[UPDATES] += 1.0, rate = controls[LEARNING_RATE], scale = gradient_scale(controls);
    coefficients[0] = (real)(1.0 - rate * weight_decay);
    coefficients[1] = (real)scale;
    coefficients[2] = (real)rate;
    coefficients[3] = (real)(trigger < 0 ? 0.0 : 1.0 / (t - trigger));
}

// p ← shrink p - lr b, where b ← momentum b + g, or b = g if it is null; average ← average + (p - average) / n unless
// it is null. Gradients and copy as in adam_update.
extern "C" __global__ void sgd_update(const T* gradients, const real* master_gradients, real* p, real* b,
                                      real* average, T* copy, real momentum, const real* coefficients,
                                      const double* controls, long long size) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size || controls[FINITE] == 0.0) return;
    const real g = (gradients ? load(gradients, i) : master_gradients[i]) * coefficients[1];
    const real b_i = b ? momentum * b[i] + g : g;
    const real p_i = coefficients[0] * p[i] - coefficients[2] * b_i;
    if (b) b[i] = b_i;
    p[i] = p_i;
    if (average) average[i] += (p_i - average[i]) * coefficients[3];
    if (copy) store(copy, i, p_i);
}
