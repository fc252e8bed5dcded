/* K-quants, with and without an importance matrix (quantize_row_q*_K_ref and _impl of ggml-quants.c; block layouts of
 * ggml-common.h). Every lane holds a super-block of 256 values.
 */

#include "descent.h"
#include "half.h"

enum { SUPER = 256 };

/* Levels of one sub-block under the stored scale d and minimum m; where d is 0 the search's own levels stay. */
INLINE void affine_levels(const vf *x, int n, int top, vf d, vf m, const Fit *fit, int clamps_first, vi *level) {
    vi kept = d == 0.f;
    for (int i = 0; i < n; i++) level[i] = clamped(nearest((x[i] + m) / d), 0, top);
    if (!any(kept)) return;
    for (int i = 0; i < n; i++) level[i] = blend_int(kept, affine_level(fit, x[i], top, clamps_first), level[i]);
}
INLINE void symmetric_levels(const vf *x, int top, vf d, const Fit *fit, vi *level) {
    vi kept = d == 0.f;
    for (int i = 0; i < 16; i++) {
        level[i] = clamped(nearest(x[i] / d), -top, top - 1) + top;
        level[i] = blend_int(kept, symmetric_level(fit, x[i], top), level[i]);
    }
}

/* Four levels of two bits in a byte. */
static void store_two_bits(const vi *level, uint8_t *const *out, int at) {
    vi byte[64];
    for (int i = 0; i < 64; i++) {
        const vi *l = level + i % 32 + 128 * (i / 32);
        byte[i] = l[0] | l[32] << 2 | l[64] << 4 | l[96] << 6;
    }
    store(byte, 64, out, at);
}

static void q2_k(const Batch *batch) {
    vf x[SUPER], weight[16], scale[16], min[16], sum_w[16], zero = splat(0.f), sigma2 = zero, d, dmin;
    vi level[SUPER], s[16], m[16], byte[16];
    Fit fit[16];
    int weighted = batch->importance[0] != NULL;
    load(batch->x, 0, SUPER, x);
    if (weighted) sigma2 = sum_of_squares(x, SUPER) / 256.f;
    for (int j = 0; j < 16; j++) {
        const vf *own = x + 16 * j;
        if (weighted) {
            importance_weights(batch, 16 * j, 16, sigma2, own, weight);
            sum_w[j] = total(weight, 16);
            fit[j] = search_affine(own, weight, 16, 3.f, -0.9f, 0.05f, 36, 0, batch->clamps_first);
        } else {
            for (int i = 0; i < 16; i++) weight[i] = absolute(own[i]);
            fit[j] = search_affine(own, weight, 16, 3.f, -0.5f, 0.1f, 15, 1, 0);
        }
        scale[j] = fit[j].scale;
        min[j] = -fit[j].min;
    }
    if (weighted) {
        d = search_positive(scale, sum_w, 16, 15, s);
        dmin = search_positive(min, sum_w, 16, 15, m);
    } else {
        vf most_scale = zero, most_min = zero;
        for (int j = 0; j < 16; j++) {
            most_scale = greatest(scale[j], most_scale);
            most_min = greatest(min[j], most_min);
        }
        vi scaled = most_scale > 0.f, lowered = most_min > 0.f;
        vf by_scale = splat(15.f) / most_scale, by_min = splat(15.f) / most_min;
        for (int j = 0; j < 16; j++) {
            s[j] = nearest(by_scale * scale[j]) & 255 & scaled;
            m[j] = nearest(by_min * min[j]) & lowered;
        }
        d = blend(scaled, most_scale / 15.f, zero);
        dmin = blend(lowered, most_min / 15.f, zero);
    }
    vi half = to_halves(d), half_min = to_halves(dmin);
    for (int j = 0; j < 16; j++) {
        byte[j] = (s[j] | m[j] << 4) & 255;
        affine_levels(
            x + 16 * j, 16, 3, from_halves(half) * floats(byte[j] & 15), from_halves(half_min) * floats(byte[j] >> 4),
            &fit[j], weighted && batch->clamps_first, level + 16 * j);
    }
    store(byte, 16, batch->out, 0);
    store_two_bits(level, batch->out, 16);
    store_word(half, batch->out, 80);
    store_word(half_min, batch->out, 82);
}

static void q3_k(const Batch *batch) {
    vf x[SUPER], weight[16], scale[16], sum_w[16], zero = splat(0.f), d;
    vi level[SUPER], s[16], byte[32];
    Fit fit[16];
    int weighted = batch->importance[0] != NULL;
    load(batch->x, 0, SUPER, x);
    if (weighted) {
        vf sigma2 = sum_of_squares(x, SUPER) * 2.f / 256.f;
        for (int j = 0; j < 16; j++) {
            importance_weights(batch, 16 * j, 16, sigma2, x + 16 * j, weight);
            sum_w[j] = total(weight, 16);
            fit[j] = search_symmetric(x + 16 * j, weight, 16, 4.f, 0);
            scale[j] = fit[j].scale;
        }
        Fit whole = search_symmetric(scale, sum_w, 16, 32.f, 1);
        d = whole.scale;
        for (int j = 0; j < 16; j++) s[j] = symmetric_level(&whole, scale[j], 32);
    } else {
        for (int j = 0; j < 16; j += TOGETHER) search_descent(x + 16 * j, scale + j, level + 16 * j);
        vf size, by = splat(-32.f) / peak(scale, 16, &size);
        vi scaled = size != 0.f;
        for (int j = 0; j < 16; j++) s[j] = (clamped(nearest(by * scale[j]), -32, 31) + 32) & scaled;
        d = blend(scaled, splat(1.f) / by, zero);
    }
    vi half = to_halves(d);
    for (int j = 0; j < 16; j++) {
        vf own_d = from_halves(half) * floats(s[j] - 32);
        vi kept = own_d == 0.f;
        for (int i = 0; i < 16; i++) {
            vi own = weighted ? symmetric_level(&fit[j], x[16 * j + i], 4) : level[16 * j + i];
            level[16 * j + i] = blend_int(kept, own, clamped(nearest(x[16 * j + i] / own_d), -4, 3) + 4);
        }
    }
    for (int i = 0; i < 32; i++) {
        byte[i] = splat_int(0);
        for (int j = 0; j < 8; j++) byte[i] |= (level[32 * j + i] >> 2) << j;
    }
    store(byte, 32, batch->out, 0);
    for (int i = 0; i < SUPER; i++) level[i] &= 3;
    store_two_bits(level, batch->out, 32);
    for (int j = 0; j < 8; j++) store_byte((s[j] & 15) | (s[j + 8] & 15) << 4, batch->out, 96 + j);
    for (int j = 0; j < 4; j++)
        store_byte(
            s[j] >> 4 | s[j + 4] >> 4 << 2 | s[j + 8] >> 4 << 4 | s[j + 12] >> 4 << 6, batch->out, 104 + j);
    store_word(half, batch->out, 108);
}

/* What Q4_K and Q5_K share: search, six-bit scales and minimums in 12 bytes after the halves, final levels. */
INLINE void affine_super_block(const Batch *batch, int top, float first, int trials, vi *level) {
    vf x[SUPER], weight[32], scale[8], min[8], sum_w[8], zero = splat(0.f), sigma2 = zero, d, dmin;
    vi s[8], m[8], byte[12];
    Fit fit[8];
    int weighted = batch->importance[0] != NULL;
    load(batch->x, 0, SUPER, x);
    if (weighted) sigma2 = sum_of_squares(x, SUPER) * 2.f / 256.f;
    for (int j = 0; j < 8; j++) {
        const vf *own = x + 32 * j;
        if (weighted) {
            importance_weights(batch, 32 * j, 32, sigma2, own, weight);
            sum_w[j] = total(weight, 32);
            fit[j] = search_affine(own, weight, 32, (float)top, -0.9f, 0.05f, 36, 0, batch->clamps_first);
        } else {
            vf mean = square_root(sum_of_squares(own, 32) / 32.f);
            for (int i = 0; i < 32; i++) weight[i] = mean + absolute(own[i]);
            fit[j] = search_affine(own, weight, 32, (float)top, first, 0.1f, trials, 0, 0);
        }
        scale[j] = fit[j].scale;
        min[j] = -fit[j].min;
    }
    if (weighted) {
        d = search_positive(scale, sum_w, 8, 63, s);
        dmin = search_positive(min, sum_w, 8, 63, m);
    } else {
        vf most_scale = zero, most_min = zero;
        for (int j = 0; j < 8; j++) {
            most_scale = greatest(scale[j], most_scale);
            most_min = greatest(min[j], most_min);
        }
        vf by_scale = blend(most_scale > 0.f, splat(63.f) / most_scale, zero);
        vf by_min = blend(most_min > 0.f, splat(63.f) / most_min, zero);
        for (int j = 0; j < 8; j++) {
            s[j] = nearest(by_scale * scale[j]) & 255;
            m[j] = nearest(by_min * min[j]) & 255;
        }
        d = most_scale / 63.f;
        dmin = most_min / 63.f;
    }
    vi half = to_halves(d), half_min = to_halves(dmin);
    for (int j = 0; j < 8; j++) {
        if (top > 15 || !weighted) {
            s[j] = clamped(s[j], 0, 63);
            m[j] = clamped(m[j], 0, 63);
        }
    }
    /* The negative scale of a sub-block is a level above 63, and Q4_K lets it overflow into its neighbour's bits. */
    for (int j = 0; j < 4; j++) {
        byte[j] = (s[j] | s[j + 4] >> 4 << 6) & 255;
        byte[j + 4] = (m[j] | m[j + 4] >> 4 << 6) & 255;
        byte[j + 8] = (s[j + 4] & 15) | (m[j + 4] & 15) << 4;
        s[j] = byte[j] & 63;
        m[j] = byte[j + 4] & 63;
        s[j + 4] = (byte[j + 8] & 15) | byte[j] >> 6 << 4;
        m[j + 4] = byte[j + 8] >> 4 | byte[j + 4] >> 6 << 4;
    }
    for (int j = 0; j < 12; j++) store_byte(byte[j], batch->out, 4 + j);
    for (int j = 0; j < 8; j++)
        affine_levels(
            x + 32 * j, 32, top, from_halves(half) * floats(s[j]), from_halves(half_min) * floats(m[j]), &fit[j],
            weighted && batch->clamps_first, level + 32 * j);
    store_word(half, batch->out, 0);
    store_word(half_min, batch->out, 2);
}

/* The low four bits of levels 64 j + i and 64 j + i + 32 in byte 32 j + i. */
static void store_nibbles(const vi *level, uint8_t *const *out, int at) {
    vi byte[128];
    for (int i = 0; i < 128; i++) {
        const vi *l = level + i % 32 + 64 * (i / 32);
        byte[i] = (l[0] & 15) | (l[32] & 15) << 4;
    }
    store(byte, 128, out, at);
}

static void q4_k(const Batch *batch) {
    vi level[SUPER];
    affine_super_block(batch, 15, -1.f, 20, level);
    store_nibbles(level, batch->out, 16);
}

static void q5_k(const Batch *batch) {
    vi level[SUPER], byte[32];
    affine_super_block(batch, 31, -0.5f, 15, level);
    for (int i = 0; i < 32; i++) {
        byte[i] = level[i] >> 4;
        for (int j = 1; j < 8; j++) byte[i] |= level[32 * j + i] >> 4 << j;
    }
    store(byte, 32, batch->out, 16);
    store_nibbles(level, batch->out, 48);
}

static void q6_k(const Batch *batch) {
    vf x[SUPER], weight[16], scale[16], size;
    vi level[SUPER], s[16], byte[128];
    Fit fit[16];
    load(batch->x, 0, SUPER, x);
    for (int j = 0; j < 16; j++) {
        if (batch->importance[0])
            load(batch->importance, 16 * j, 16, weight);
        else
            for (int i = 0; i < 16; i++) weight[i] = x[16 * j + i] * x[16 * j + i];
        fit[j] = search_symmetric(x + 16 * j, weight, 16, 32.f, 0);
        scale[j] = fit[j].scale;
    }
    vf by = splat(-128.f) / peak(scale, 16, &size);
    vi half = to_halves(splat(1.f) / by), zero_block = size < ZERO_BLOCK;
    for (int j = 0; j < 16; j++) {
        s[j] = nearest(by * scale[j]);
        s[j] = blend_int(s[j] > 127, splat_int(127), s[j]) << 24 >> 24;
        symmetric_levels(x + 16 * j, 32, from_halves(half) * floats(s[j]), &fit[j], level + 16 * j);
    }
    for (int i = 0; i < 128; i++) {
        const vi *l = level + i % 64 + 128 * (i / 64);
        byte[i] = (l[0] & 15) | (l[64] & 15) << 4;
    }
    store(byte, 128, batch->out, 0);
    for (int i = 0; i < 64; i++) {
        const vi *l = level + i % 32 + 128 * (i / 32);
        byte[i] = l[0] >> 4 | l[32] >> 4 << 2 | l[64] >> 4 << 4 | l[96] >> 4 << 6;
    }
    store(byte, 64, batch->out, 128);
    for (int j = 0; j < 16; j++) byte[j] = s[j] & 255;
    store(byte, 16, batch->out, 192);
    store_word(half, batch->out, 208);
    EACH_LANE
        if (zero_block[k]) memset(batch->out[k], 0, 210);
}

EXPORT(q2_k, SUPER, 84)
EXPORT(q3_k, SUPER, 110)
EXPORT(q4_k, SUPER, 144)
EXPORT(q5_k, SUPER, 176)
EXPORT(q6_k, SUPER, 210)
