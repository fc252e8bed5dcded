/* Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0, with and without an importance matrix (quantize_row_q*_ref and _impl of
 * ggml-quants.c). Every lane holds a block of 32 values.
 */

#include "search.h"

/* C's conversion of a float to int8_t, then the smaller of it and `top`, as a byte. */
INLINE vi small_level(vf x, int top) {
    vi level = truncated(x) << 24 >> 24;
    return blend_int(level < top, level, splat_int(top)) & 255;
}
INLINE vf inverse_or_zero(vf x) { return blend(x != 0.f, splat(1.f) / x, splat(0.f)); }

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
    vf x[32], weight[32], d;
    vi level[32];
    int half_range = 1 << (bits - 1);
    load(batch->x, 0, 32, x);
    if (batch->importance[0]) {
        importance_weights(batch, 0, 32, batch->row_squares, x, weight);
        Fit fit = search_symmetric(x, weight, 32, (float)half_range, 0);
        d = fit.scale;
        for (int i = 0; i < 32; i++) level[i] = symmetric_level(&fit, x[i], half_range);
    } else {
        vf size;
        d = peak(x, 32, &size) / (float)-half_range;
        vf step = inverse_or_zero(d);
        for (int i = 0; i < 32; i++)
            level[i] = small_level(x[i] * step + ((float)half_range + 0.5f), 2 * half_range - 1);
    }
    store_word(to_halves(d), batch->out, 0);
    store_levels(level, bits, batch->out, 2);
}

INLINE void affine_block(const Batch *batch, int bits) {
    vf x[32], weight[32], d, min;
    vi level[32];
    int top = (1 << bits) - 1;
    load(batch->x, 0, 32, x);
    if (batch->importance[0]) {
        importance_weights(batch, 0, 32, batch->row_squares, x, weight);
        Fit fit = search_affine(x, weight, 32, (float)top, -0.9f, 0.05f, 36, 0, batch->clamps_first);
        d = fit.scale;
        min = fit.min;
        for (int i = 0; i < 32; i++) level[i] = affine_level(&fit, x[i], top, batch->clamps_first);
    } else {
        vf high = x[0];
        min = x[0];
        for (int i = 1; i < 32; i++) {
            min = least(x[i], min);
            high = greatest(x[i], high);
        }
        d = (high - min) / (float)top;
        vf step = inverse_or_zero(d);
        for (int i = 0; i < 32; i++) level[i] = small_level((x[i] - min) * step + 0.5f, top);
    }
    store_word(to_halves(d), batch->out, 0);
    store_word(to_halves(min), batch->out, 2);
    store_levels(level, bits, batch->out, 4);
}

static void q4_0(const Batch *batch) { symmetric_block(batch, 4); }
static void q5_0(const Batch *batch) { symmetric_block(batch, 5); }
static void q4_1(const Batch *batch) { affine_block(batch, 4); }
static void q5_1(const Batch *batch) { affine_block(batch, 5); }

static void q8_0(const Batch *batch) {
    vf x[32], size = splat(0.f);
    vi level[32];
    load(batch->x, 0, 32, x);
    for (int i = 0; i < 32; i++) size = greatest(size, absolute(x[i]));
    vf d = size / 127.f, step = inverse_or_zero(d);
    for (int i = 0; i < 32; i++) {
        /* roundf, half away from zero: the float below 0.5 keeps 0.49999997 from reaching 1. */
        vf v = x[i] * step, towards = (vf)(((vi)v & (int32_t)0x80000000) | (vi)splat(0x1.fffffep-2f));
        level[i] = truncated(v + towards);
    }
    store_word(to_halves(d), batch->out, 0);
    store(level, 32, batch->out, 2);
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
        if (!importance)                                                                                          \
            run_batches(type, x, out, n_rows, n_columns, NULL, NULL, clamps_first, 32, block_bytes);              \
    }
EXPORT_BY_ROW(q4_0, 18)
EXPORT_BY_ROW(q4_1, 20)
EXPORT_BY_ROW(q5_0, 22)
EXPORT_BY_ROW(q5_1, 24)
EXPORT(q8_0, 32, 34)
