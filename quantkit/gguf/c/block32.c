/* Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0, with and without an importance matrix (quantize_row_q*_ref and _impl of
 * ggml-quants.c). Every lane holds a block of 32 values.
 */

#include "along.h"
#include "search.h"

/* A level that is not negative, at most `top`. ggml converts it to int8_t first; what does not fit, a scale of zero gives,
 * and then the low bits are the same. */
INLINE vi small_level(vf x, int top) { return clamped(truncated(x), INT32_MIN, top); }
/* Levels of four or five bits: the low four, two in a byte, after the fifth of all 32. */
INLINE void store_levels(const vi *level, int bits, uint8_t *const *out, int at) {
    vi byte[16];
    if (bits == 5) {
        vi high = splat_int(0);
        for (int i = 0; i < 32; i++) high |= (level[i] >> 4 & 1) << i;
        EACH_LANE {
            int32_t word = high[k];
            memcpy(out[k] + at, &word, 4);
        }
        at += 4;
    }
    for (int i = 0; i < 16; i++) byte[i] = (level[i] & 15) | (level[i + 16] & 15) << 4;
    store(byte, 16, out, at);
}

INLINE void symmetric_block(const Batch *batch, int bits) {
    vf x[32], weight[32];
    vi level[32];
    int half_range = 1 << (bits - 1);
    load(batch->x, 0, 32, x);
    importance_weights(batch, 0, 32, batch->row_squares, x, weight);
    Fit fit = search_symmetric(x, weight, 32, (float)half_range, 0);
    for (int i = 0; i < 32; i++) level[i] = symmetric_level(&fit, x[i], half_range);
    store_word(to_halves(fit.scale), batch->out, 0);
    store_levels(level, bits, batch->out, 2);
}

INLINE void affine_block(const Batch *batch, int bits) {
    vf x[32], weight[32];
    vi level[32];
    int top = (1 << bits) - 1;
    load(batch->x, 0, 32, x);
    importance_weights(batch, 0, 32, batch->row_squares, x, weight);
    Fit fit = search_affine(x, weight, 32, (float)top, -0.9f, 0.05f, 36, 0, batch->clamps_first);
    for (int i = 0; i < 32; i++) level[i] = affine_level(&fit, x[i], top, batch->clamps_first);
    store_word(to_halves(fit.scale), batch->out, 0);
    store_word(to_halves(fit.min), batch->out, 2);
    store_levels(level, bits, batch->out, 4);
}

static void q4_0(const Batch *batch) { symmetric_block(batch, 4); }
static void q5_0(const Batch *batch) { symmetric_block(batch, 5); }
static void q4_1(const Batch *batch) { affine_block(batch, 4); }
static void q5_1(const Batch *batch) { affine_block(batch, 5); }

/* Of values of the largest magnitude `size` ggml takes the first. */
INLINE float first_of_size(const float *block, float size) {
    float value = 0.f;
    for (int i = 31; i >= 0; i--)
        if (size > 0.f && fabsf(block[i]) == size) value = block[i];
    return value;
}
/* The first of zeros of both signs, as ggml takes it. */
INLINE float first_zero(const float *block, float value) {
    for (int i = 31; i >= 0; i--)
        if (block[i] == 0.f) value = block[i];
    return value;
}
/* The value of largest magnitude of every block, or with `affine` the largest; blocks where several have it are rare. */
INLINE vf extremes(const float *blocks, vf *low, vf high, int affine) {
    if (affine) {
        vi low_zero = *low == 0.f, high_zero = high == 0.f;
        if (any(low_zero | high_zero)) EACH_LANE {
                if (low_zero[k]) (*low)[k] = first_zero(blocks + 32 * k, 0.f);
                if (high_zero[k]) high[k] = first_zero(blocks + 32 * k, 0.f);
            }
        return high;
    }
    vi equal = high == -*low;
    vf extreme = blend(high > -*low, high, *low);
    if (any(equal)) EACH_LANE if (equal[k]) extreme[k] = first_of_size(blocks + 32 * k, high[k]);
    return extreme;
}

/* LANES blocks without importances: their scales share a vector, because a division takes as long for all lanes as for
 * one. */
INLINE void lanes_along(const float *blocks, uint8_t *out, int bits, int affine) {
    int half_range = 1 << (bits - 1), top = (1 << bits) - 1, bytes = (affine ? 4 : 2) + 4 * bits;
    vf low, high;
    float lows[LANES], steps[LANES];
    uint16_t scales[LANES], mins[LANES];
    ranges(blocks, &low, &high);
    high = extremes(blocks, &low, high, affine);
    vf d = affine ? (high - low) / (float)top : high / (float)-half_range;
    vf step = blend(d != 0.f, splat(1.f) / d, splat(0.f));
    vi d_half = to_halves(d), low_half = to_halves(low);
    memcpy(lows, &low, sizeof low);
    memcpy(steps, &step, sizeof step);
    EACH_LANE scales[k] = (uint16_t)d_half[k], mins[k] = (uint16_t)low_half[k];
    UNROLLED
    EACH_LANE {
        uint8_t *to = out + bytes * k;
        vi level[PER_BLOCK];
        memcpy(to, &scales[k], 2);
        if (affine) memcpy(to + 2, &mins[k], 2);
        UNROLLED
        for (int i = 0; i < PER_BLOCK; i++) {
            vf x = vector_at(blocks + 32 * k + i * LANES);
            level[i] = affine ? small_level((x - lows[k]) * steps[k] + 0.5f, top)
                              : small_level(x * steps[k] + ((float)half_range + 0.5f), top);
        }
        store_block(level, bits, to + (affine ? 4 : 2));
    }
}

/* The last blocks are copied, and the last of them fills the lanes that are left. */
INLINE void blocks_along(const float *block, uint8_t *out, int64_t count, int bits, int affine) {
    int bytes = (affine ? 4 : 2) + 4 * bits;
    for (; count > 0; count -= LANES, block += 32 * LANES, out += bytes * LANES) {
        float copied[32 * LANES];
        uint8_t made[24 * LANES];
        int last = count < LANES;
        if (last) EACH_LANE memcpy(copied + 32 * k, block + 32 * (k < count ? k : count - 1), 32 * sizeof(float));
        lanes_along(last ? copied : block, last ? made : out, bits, affine);
        if (last) memcpy(out, made, (size_t)count * (size_t)bytes);
    }
}
static void q4_0_along(const float *x, uint8_t *out, int64_t count) { blocks_along(x, out, count, 4, 0); }
static void q5_0_along(const float *x, uint8_t *out, int64_t count) { blocks_along(x, out, count, 5, 0); }
static void q4_1_along(const float *x, uint8_t *out, int64_t count) { blocks_along(x, out, count, 4, 1); }
static void q5_1_along(const float *x, uint8_t *out, int64_t count) { blocks_along(x, out, count, 5, 1); }

/* Importances do not change Q8_0. */
INLINE void q8_0_block(const float *block, uint8_t *out) {
    vf x[PER_BLOCK];
    vi level[PER_BLOCK];
    UNROLLED
    for (int i = 0; i < PER_BLOCK; i++) x[i] = vector_at(block + i * LANES);
    float d = largest_magnitude(x) / 127.f;
    uint16_t half = to_half(d);
    memcpy(out, &half, 2);
    vf step = splat(d != 0.f ? 1.f / d : 0.f);
    UNROLLED
    for (int i = 0; i < PER_BLOCK; i++) {
        /* roundf, half away from zero: the float below 0.5 keeps 0.49999997 from reaching 1. */
        vf v = x[i] * step, towards = (vf)(((vi)v & (int32_t)0x80000000) | (vi)splat(0x1.fffffep-2f));
        level[i] = truncated(v + towards);
    }
    narrow(level, out + 2);
}

/* The mean square of every row, LANES rows at a time. */
static void mean_squares(const float *x, int64_t n_rows, int64_t n_columns, float *mean) {
    for (int64_t first = 0; first < n_rows; first += LANES) {
        const float *row[LANES];
        vf sum = splat(0.f);
        EACH_LANE row[k] = x + (first + k < n_rows ? first + k : n_rows - 1) * n_columns;
        for (int64_t at = 0; at < n_columns; at += 32) {
            vf part[32];
            load(row, at, 32, part);
            for (int i = 0; i < 32; i++) sum += part[i] * part[i];
        }
        sum /= (float)n_columns;
        for (int k = 0; k < LANES && first + k < n_rows; k++) mean[first + k] = sum[k];
    }
}

/* As EXPORT, for types whose weights depend on the whole row. Rows are taken a few at a time. */
#define EXPORT_BY_ROW(type, block_bytes)                                                                          \
    void quantkit_##type(                                                                                         \
        const float *x, uint8_t *out, int64_t n_rows, int64_t n_columns, const float *importance,                 \
        int clamps_first) {                                                                                       \
        float mean[LANES];                                                                                        \
        for (int64_t row = 0; importance && row < n_rows; row += LANES) {                                         \
            int64_t rows = n_rows - row < LANES ? n_rows - row : LANES;                                           \
            mean_squares(x + row * n_columns, rows, n_columns, mean);                                             \
            run_batches(                                                                                          \
                type, x + row * n_columns, out + row * n_columns / 32 * block_bytes, rows, n_columns, importance, \
                mean, clamps_first, 32, block_bytes);                                                             \
        }                                                                                                         \
        if (!importance) type##_along(x, out, n_rows * n_columns / 32);                                           \
    }
EXPORT_BY_ROW(q4_0, 18)
EXPORT_BY_ROW(q4_1, 20)
EXPORT_BY_ROW(q5_0, 22)
EXPORT_BY_ROW(q5_1, 24)

void quantkit_q8_0(
    const float *x, uint8_t *out, int64_t n_rows, int64_t n_columns, const float *importance, int clamps_first) {
    (void)importance, (void)clamps_first;
    for (int64_t i = 0; i < n_rows * n_columns / 32; i++) q8_0_block(x + 32 * i, out + 34 * i);
}
