/* IQ4_NL and IQ4_XS, with and without an importance matrix (quantize_row_iq4_nl_impl of ggml-quants.c). Every lane
 * holds a block of 32 values, or a super-block of 256.
 */

#include "search.h"

/* The 16 levels, and the points halfway between them: x belongs to the upper one from there on. */
static const float VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const float BOUNDS[16] = {-115.5f, -93.5f, -74, -57, -42, -28.5f, -16, -4.5f, 7, 19, 31.5f, 45.5f, 61, 79, 101};

#if LANES >= 8 && !defined __clang__
/* Both tables fit into one or two vectors, so the search is a binary one. */
typedef struct {
    vf values[16 / LANES], bounds[16 / LANES];
} Tables;
INLINE Tables tables(void) {
    Tables both;
    memcpy(both.values, VALUES, sizeof VALUES);
    memcpy(both.bounds, BOUNDS, sizeof BOUNDS);
    return both;
}
INLINE vf look_up(const vf *table, vi index) {
    return LANES == 16 ? __builtin_shuffle(table[0], index) : __builtin_shuffle(table[0], table[16 / LANES - 1], index);
}
INLINE vi nearest_value(const Tables *both, vf x) {
    vi index = ~(x < BOUNDS[7]) & 8; /* 15 for NaN, as in ggml */
    for (int width = 4; width > 0; width /= 2)
        index += ~(x < look_up(both->bounds, index + (width - 1))) & width;
    return index;
}
INLINE vf value_of(const Tables *both, vi index) { return look_up(both->values, index); }
#else
typedef int Tables;
INLINE Tables tables(void) { return 0; }
INLINE vi nearest_value(const Tables *both, vf x) {
    (void)both;
    vi index = splat_int(0);
    for (int i = 0; i < 15; i++) index -= ~(x < BOUNDS[i]);
    return index;
}
INLINE vf value_of(const Tables *both, vi index) {
    (void)both;
    vf value = splat(VALUES[0]);
    for (int i = 1; i < 16; i++) value = blend(index >= i, splat(VALUES[i]), value);
    return value;
}
#endif

/* The scale of 32 values over trial steps. */
INLINE vf search_values(const Tables *both, const vf *x, const vf *weight) {
    vf size, extreme = peak(x, 32, &size), zero = splat(0.f), scale = zero, best = zero;
    for (int trial = -8; trial <= 7; trial++) {
        /* The plain step comes first. */
        vf step = trial == -8 ? splat(1.f) / (-extreme / VALUES[0]) : splat((float)trial + VALUES[0]) / extreme;
        vf sum_qx = zero, sum_q2 = zero;
        for (int i = 0; i < 32; i++) {
            vf q = value_of(both, nearest_value(both, step * x[i])), wq = weight[i] * q;
            sum_qx += wq * x[i];
            sum_q2 += wq * q;
        }
        vf ratio = sum_qx / sum_q2;
        vi better = trial == -8 ? sum_q2 > 0.f : (sum_q2 > 0.f) & (sum_qx * sum_qx > best * sum_q2);
        scale = blend(better, ratio, scale);
        best = trial == -8 ? scale * sum_qx : blend(better, ratio * sum_qx, best);
    }
    return blend(size < ZERO_BLOCK, zero, scale);
}

/* Weights of a block's errors: importance times sqrt(sigma2 + x^2), or x^2. */
INLINE void value_weights(const Batch *batch, int at, vf sigma2, const vf *x, vf *weight) {
    if (batch->importance[0])
        importance_weights(batch, at, 32, sigma2, x, weight);
    else
        for (int i = 0; i < 32; i++) weight[i] = x[i] * x[i];
}

/* The 32 values of a block under a step, two in a byte. */
INLINE void store_values(const Tables *both, const vf *x, vf step, uint8_t *const *out, int at) {
    vi byte[16];
    for (int i = 0; i < 16; i++)
        byte[i] = nearest_value(both, step * x[i]) | nearest_value(both, step * x[i + 16]) << 4;
    store(byte, 16, out, at);
}

INLINE vf inverse(vf x) { return blend(x != 0.f, splat(1.f) / x, splat(0.f)); }

static void iq4_nl(const Batch *batch) {
    vf x[32], weight[32];
    Tables both = tables();
    load(batch->x, 0, 32, x);
    value_weights(batch, 0, sum_of_squares(x, 32) * (2.f / 32), x, weight);
    vf scale = search_values(&both, x, weight);
    store_word(to_halves(scale), batch->out, 0);
    store_values(&both, x, inverse(scale), batch->out, 2);
}

static void iq4_xs(const Batch *batch) {
    vf x[256], weight[32], scale[8], size;
    vi high = splat_int(0), low[4];
    Tables both = tables();
    load(batch->x, 0, 256, x);
    vf sigma2 = sum_of_squares(x, 256) * (2.f / 256);
    for (int j = 0; j < 8; j++) {
        value_weights(batch, 32 * j, sigma2, x + 32 * j, weight);
        scale[j] = search_values(&both, x + 32 * j, weight);
    }
    vf d = -peak(scale, 8, &size) / 32.f, step = inverse(d);
    for (int j = 0; j < 8; j++) {
        vi level = clamped(nearest(step * scale[j]), -32, 31);
        store_values(&both, x + 32 * j, inverse(d * floats(level)), batch->out, 8 + 16 * j);
        level += 32;
        low[j / 2] = j % 2 ? low[j / 2] | (level & 15) << 4 : level & 15;
        high |= level >> 4 << 2 * j;
    }
    store_word(to_halves(d), batch->out, 0);
    store_word(high, batch->out, 2);
    for (int j = 0; j < 4; j++) store_byte(low[j], batch->out, 4 + j);
}

EXPORT(iq4_nl, 32, 18)
EXPORT(iq4_xs, 256, 136)
