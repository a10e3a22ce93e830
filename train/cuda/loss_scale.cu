// The scale of the next step's loss, from what the update kernels have found out about this step. The rules and their
// NumPy twins are in train/mixed_precision.py. All is done where the numbers lie: the next step is scaled right
// although the host has not heard of this one yet.

// Places in `controls`, as in adam.cu.
#define LARGEST 4
#define FINITE 5
// Places in `numbers`; train/scale_kernels.py has the same. The first two are every scaler's.
#define SCALE 0
#define OVERFLOWS_AT_LOWEST 1
#define CLEAN_STEPS 2
#define STEPS 2
#define MEAN 3
#define SLOW_MEAN 4
#define SQUARE 5

// What every scaler does with its next scale. factors[0] is what the gradient of a step that has so many parts begins
// with, factors[1] what undoes the scale.
DEVICE void take_scale(double* numbers, double scale, bool finite, double lowest, double parts, real* factors) {
    if (numbers[SCALE] <= lowest && !finite) numbers[OVERFLOWS_AT_LOWEST] += 1.0;
    if (scale > lowest) numbers[OVERFLOWS_AT_LOWEST] = 0.0;
    numbers[SCALE] = scale;
    factors[0] = (real)(scale / parts);
    factors[1] = (real)(1.0 / scale);
}

// One thread each.

extern "C" __global__ void backoff_scale(const double* controls, double* numbers, double lowest, double highest,
                                         double growth_steps, double parts, real* factors) {
    const bool finite = controls[FINITE] != 0.0;
    double scale = numbers[SCALE];
    numbers[CLEAN_STEPS] = finite ? numbers[CLEAN_STEPS] + 1.0 : 0.0;
    if (!finite) {
        scale = scale / 2.0 > lowest ? scale / 2.0 : lowest;  // (76)
    } else if (numbers[CLEAN_STEPS] >= growth_steps) {
        numbers[CLEAN_STEPS] = 0.0;
        scale = scale * 2.0 < highest ? scale * 2.0 : highest;  // (76)
    }
    take_scale(numbers, scale, finite, lowest, parts, factors);
}

extern "C" __global__ void log_max_scale(const double* controls, double* numbers, double lowest, double highest,
                                         double beta_mean, double beta_deviation, double deviations,
                                         double largest_exponent, double parts, real* factors) {
    const bool finite = controls[FINITE] != 0.0;
    const double largest = controls[LARGEST];
    double scale = numbers[SCALE];
    if (!finite || largest > 0.0) {  // else there is nothing to learn from
        const double x = finite ? log2(largest) : largest_exponent + 1.0 - log2(scale);
        const double steps = numbers[STEPS] += 1.0;
        numbers[MEAN] += (1.0 - beta_mean) * (x - numbers[MEAN]);
        numbers[SLOW_MEAN] += (1.0 - beta_deviation) * (x - numbers[SLOW_MEAN]);
        numbers[SQUARE] += (1.0 - beta_deviation) * (x * x - numbers[SQUARE]);
        const double freed = 1.0 - pow(beta_mean, steps), slow_freed = 1.0 - pow(beta_deviation, steps);
        const double slow_mean = numbers[SLOW_MEAN] / slow_freed;
        const double variance = numbers[SQUARE] / slow_freed - slow_mean * slow_mean;
        const double cutoff = numbers[MEAN] / freed + deviations * sqrt(variance > 0.0 ? variance : 0.0);
        scale = exp2(largest_exponent - cutoff);
        scale = scale > lowest ? scale : lowest;
        scale = scale < highest ? scale : highest;
    }
    take_scale(numbers, scale, finite, lowest, parts, factors);
}
