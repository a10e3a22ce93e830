// One step of the layer-normalised LSTM as one kernel; the NumPy twin is minilstm/layer_norm_lstm.py. Symbols and
// equation numbers are those of docs/lstm_backward.md, the four blocks of H columns in a row are the gates
// i, f, g, o. One block takes one row of the batch; each thread takes every blockDim.x-th unit of it. All
// statistics are of numbers that have not been rounded to T.
// Dynamic shared memory: 4H reals, of which each thread touches those of its own units alone.

const int I = 0, F = 1, G = 2, O = 3;
const real FORGET_BIAS = 1;

DEVICE real sigmoid(real z) { return real(0.5) * tanh(real(0.5) * z) + real(0.5); }

#define UNITS(unit) int unit = threadIdx.x; unit < H; unit += blockDim.x

// Forward, from x_t W_ihᵀ and h_{t-1} W_hhᵀ to the state of the step.
//   normal         (B, 4H)  in: x_t W_ihᵀ; out: the pre-activations, normalised
//   recurrent      (B, 4H)  h_{t-1} W_hhᵀ
//   gate_gain, gate_shift (4H), cell_gain, cell_shift (H)
//   c_before       (B, H)   c_{t-1}
//   mask           (B, H)   what the candidate is multiplied with, or null
//   gates          (B, 4H)  out: i, f, g, o
//   inverse_std    (B, 4)   out: 1 / √(variance + epsilon) of each gate
//   normal_c       (B, H)   out: the new cell, normalised
//   c_inverse_std  (B)      out: as inverse_std, of the cell
//   c, h           (B, H)   out: c_t, h_t
extern "C" __global__ void layer_norm_lstm_forward(
    T* normal, const real* recurrent, const T* gate_gain, const T* gate_shift, const T* cell_gain,
    const T* cell_shift, const T* c_before, const T* mask, T* gates, real* inverse_std, T* normal_c,
    real* c_inverse_std, T* c, T* h, real epsilon, int H
) {
    DYNAMIC_SHARED(real, a);
    size_t row = blockIdx.x, first_gate = row * 4 * H, first = row * H;

    real mean[4] = {0, 0, 0, 0}, variance[4] = {0, 0, 0, 0};
    for (UNITS(unit))
        for (int gate = 0; gate < 4; gate++) {
            int column = gate * H + unit;
            a[column] = load(normal, first_gate + column) + recurrent[first_gate + column];  // (50)
            mean[gate] += a[column];
        }
    block_sums(mean);
    for (int gate = 0; gate < 4; gate++) mean[gate] /= H;
    for (UNITS(unit))
        for (int gate = 0; gate < 4; gate++) {
            real centred = a[gate * H + unit] -= mean[gate];
            variance[gate] += centred * centred;
        }
    block_sums(variance);
    real inverse[4];
    for (int gate = 0; gate < 4; gate++) {
        inverse[gate] = 1 / sqrt(variance[gate] / H + epsilon);
        if (threadIdx.x == 0) inverse_std[row * 4 + gate] = inverse[gate];
    }

    real cell_mean[1] = {0}, cell_variance[1] = {0};
    for (UNITS(unit)) {
        real z[4];
        for (int gate = 0; gate < 4; gate++) {
            int column = gate * H + unit;
            real n = a[column] * inverse[gate];  // (40)
            store(normal, first_gate + column, n);
            z[gate] = n * load(gate_gain, column) + load(gate_shift, column);  // (51)
        }
        real i = sigmoid(z[I]), f = sigmoid(z[F] + FORGET_BIAS), g = tanh(z[G]), o = sigmoid(z[O]);  // (2), (3)
        store(gates, first_gate + unit, i);
        store(gates, first_gate + H + unit, f);
        store(gates, first_gate + 2 * H + unit, g);
        store(gates, first_gate + 3 * H + unit, o);
        if (mask) g *= load(mask, first + unit);  // (35)
        real s = f * load(c_before, first + unit) + i * g;  // (52)
        a[unit] = s, a[H + unit] = o;
        cell_mean[0] += s;
    }
    block_sums(cell_mean);
    cell_mean[0] /= H;
    for (UNITS(unit)) {
        real centred = a[unit] -= cell_mean[0];
        cell_variance[0] += centred * centred;
    }
    block_sums(cell_variance);
    real c_inverse = 1 / sqrt(cell_variance[0] / H + epsilon);
    if (threadIdx.x == 0) c_inverse_std[row] = c_inverse;
    for (UNITS(unit)) {
        real n = a[unit] * c_inverse;  // (40)
        store(normal_c, first + unit, n);
        store(c, first + unit, n * load(cell_gain, unit) + load(cell_shift, unit));  // (53)
        store(h, first + unit, a[H + unit] * tanh(load(c, first + unit)));  // (5), from c_t as it is carried on
    }
}

// Backward, from what arrives at h_t and c_t to da_t and to what goes to the step before.
//   gates          (B, 4H)  i, f, g, o
//   da             (B, 4H)  out: the gradient of x_t W_ihᵀ + h_{t-1} W_hhᵀ; it may be `gates` itself
//   normal, inverse_std, normal_c, c_inverse_std, gate_gain, cell_gain, c, mask: as in forward
//   dy             (B, H)   what arrives at h_t from outside, or null
//   dh             (B, H)   what arrives at h_t from step t+1
//   dc             (B, H)   in: what arrives at c_t from step t+1; out: at c_{t-1} from step t
//   d_gate_gain, d_gate_shift (B, 4H), d_cell_gain, d_cell_shift (B, H): this step's are added
extern "C" __global__ void layer_norm_lstm_backward(
    const T* gates, T* da, const T* normal, const real* inverse_std, const T* normal_c,
    const real* c_inverse_std, const T* gate_gain, const T* cell_gain, const T* c_before, const T* c,
    const T* mask, const T* dy, const real* dh, real* dc, real* d_gate_gain, real* d_gate_shift,
    real* d_cell_gain, real* d_cell_shift, int H
) {
    DYNAMIC_SHARED(real, dn);
    size_t row = blockIdx.x, first_gate = row * 4 * H, first = row * H;

    real cell_means[2] = {0, 0};  // of dn · n and of dn, over the units of the cell
    for (UNITS(unit)) {
        size_t k = first + unit;
        real o = load(gates, first_gate + 3 * H + unit), tanh_c = tanh(load(c, k)), n = load(normal_c, k);
        real dh_t = dh[k] + (dy ? load(dy, k) : real(0));  // (6)
        real dc_t = dc[k] + dh_t * o * (1 - tanh_c * tanh_c);  // (7)
        d_cell_gain[k] += dc_t * n;  // (54)
        d_cell_shift[k] += dc_t;
        dn[unit] = dc_t * load(cell_gain, unit);  // (42)
        cell_means[0] += dn[unit] * n;
        cell_means[1] += dn[unit];
    }
    block_sums(cell_means);

    real means[8] = {0, 0, 0, 0, 0, 0, 0, 0};  // of dn · n of the four gates, then of dn
    for (UNITS(unit)) {
        size_t k = first + unit, at = first_gate + unit;
        real i = load(gates, at), f = load(gates, at + H), g = load(gates, at + 2 * H), o = load(gates, at + 3 * H);
        real tanh_c = tanh(load(c, k)), m = mask ? load(mask, k) : real(1);
        real dh_t = dh[k] + (dy ? load(dy, k) : real(0));
        real ds = (dn[unit] - load(normal_c, k) * (cell_means[0] / H) - cell_means[1] / H) * c_inverse_std[row];  // (55)
        real dz[4];
        dz[I] = ds * m * g * i * (1 - i);  // (56)
        dz[F] = ds * load(c_before, k) * f * (1 - f);
        dz[G] = ds * m * i * (1 - g * g);
        dz[O] = dh_t * tanh_c * o * (1 - o);  // (9)
        dc[k] = ds * f;  // (57)
        for (int gate = 0; gate < 4; gate++) {
            int column = gate * H + unit;
            real n = load(normal, first_gate + column);
            d_gate_gain[first_gate + column] += dz[gate] * n;  // (58)
            d_gate_shift[first_gate + column] += dz[gate];
            dn[column] = dz[gate] * load(gate_gain, column);  // (42)
            means[gate] += dn[column] * n;
            means[4 + gate] += dn[column];
        }
    }
    block_sums(means);
    for (UNITS(unit))
        for (int gate = 0; gate < 4; gate++) {
            size_t column = size_t(gate) * H + unit, at = first_gate + column;
            real centred = dn[column] - load(normal, at) * (means[gate] / H) - means[4 + gate] / H;
            store(da, at, centred * inverse_std[row * 4 + gate]);  // (59)
        }
}
