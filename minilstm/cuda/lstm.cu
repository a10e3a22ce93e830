// The LSTM's pointwise work, one launch a step; the NumPy twin is minilstm/lstm.py. Symbols and equation numbers
// are those of docs/lstm_backward.md, the four blocks of H columns in a row are the gates i, f, g, o.
// One thread takes one unit of one row of the batch, element k = row * H + unit of (B, H).

DEVICE real sigmoid(real z) { return real(0.5) * tanh(real(0.5) * z) + real(0.5); }

// Forward, from x_t W_ihᵀ and h_{t-1} W_hhᵀ to the state of the step.
//   gates      (B, 4H)  in: x_t W_ihᵀ; out: i, f, g, o
//   recurrent  (B, 4H)  h_{t-1} W_hhᵀ, not rounded to T
//   b          (4H)
//   c_before   (B, H)   c_{t-1}
//   mask       (B, H)   what the candidate is multiplied with, or null
//   c, h       (B, H)   out: c_t, h_t
extern "C" __global__ void lstm_forward(
    T* gates, const real* recurrent, const T* b, const T* c_before, const T* mask, T* c, T* h, int B, int H
) {
    size_t k = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (k >= size_t(B) * H) return;
    size_t unit = k % H, first = k / H * 4 * H + unit;
    real z[4];
    for (int gate = 0; gate < 4; gate++) {
        size_t column = size_t(gate) * H;
        z[gate] = load(gates, first + column) + recurrent[first + column] + load(b, unit + column);  // (1)
    }
    real i = sigmoid(z[0]), f = sigmoid(z[1]), o = sigmoid(z[3]);  // (2)
    real g = tanh(z[2]);  // (3)
    store(gates, first, i);
    store(gates, first + H, f);
    store(gates, first + 2 * size_t(H), g);
    store(gates, first + 3 * size_t(H), o);
    if (mask) g *= load(mask, k);  // (35)
    store(c, k, f * load(c_before, k) + i * g);  // (4)
    store(h, k, o * tanh(load(c, k)));  // (5), from c_t as it is carried on and as backward finds it
}

// Backward, from what arrives at h_t and c_t to dz_t and to what goes to the step before.
//   gates      (B, 4H)  i, f, g, o
//   dz         (B, 4H)  out; it may be `gates` itself
//   c_before   (B, H)   c_{t-1}
//   c          (B, H)   c_t
//   mask       (B, H)   as in forward, or null
//   dy         (B, H)   what arrives at h_t from outside, or null
//   dh         (B, H)   what arrives at h_t from step t+1
//   dc         (B, H)   in: what arrives at c_t from step t+1; out: at c_{t-1} from step t
extern "C" __global__ void lstm_backward(
    const T* gates, T* dz, const T* c_before, const T* c, const T* mask, const T* dy, const real* dh, real* dc,
    int B, int H
) {
    size_t k = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (k >= size_t(B) * H) return;
    size_t first = k / H * 4 * H + k % H;
    real i = load(gates, first), f = load(gates, first + H);
    real g = load(gates, first + 2 * size_t(H)), o = load(gates, first + 3 * size_t(H));
    real tanh_c = tanh(load(c, k)), m = mask ? load(mask, k) : real(1);
    real dh_t = dh[k] + (dy ? load(dy, k) : real(0));  // (6)
    real dc_t = dc[k] + dh_t * o * (1 - tanh_c * tanh_c);  // (7)
    store(dz, first, dc_t * m * g * i * (1 - i));  // (8), (36)
    store(dz, first + H, dc_t * load(c_before, k) * f * (1 - f));
    store(dz, first + 2 * size_t(H), dc_t * m * i * (1 - g * g));
    store(dz, first + 3 * size_t(H), dh_t * tanh_c * o * (1 - o));  // (9)
    dc[k] = dc_t * f;  // (10)
}
