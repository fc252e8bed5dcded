/* K-quants without an importance matrix, eight sub-blocks side by side.
 *
 * The search for a sub-block's scale is a long chain of float sums whose order decides the last bit, so it cannot be
 * vectorised along the sub-block. It can across sub-blocks: each vector lane holds one and does exactly the operations
 * ggml's reference does (quantize_row_q2_K_ref, _q4_K_ref, _q5_K_ref, _q6_K_ref; block layouts of ggml-common.h), in
 * the same order and precision. Compile with -ffp-contract=off: a fused multiply-add would round once less.
 *
 * Built by c_kernels.py, which uses it only where its bytes equal ggml's on a self-test.
 */

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "half.h"

enum { SUPER = 256, LANES = 8 };

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));

static inline vf select(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }
static inline vf splat(float x) { return (vf){x, x, x, x, x, x, x, x}; }
static inline vf magnitude(vf x) { return (vf)((vi)x & 0x7fffffff); }

/* ggml's rounding: adding 1.5 * 2^23 leaves the nearest integer, ties to even, in the low bits. */
static inline vi nearest(vf x) { return ((vi)(x + 12582912.f) & 0x007fffff) - 0x00400000; }
static inline int nearest1(float x) {
    float shifted = x + 12582912.f;
    int32_t bits;
    memcpy(&bits, &shifted, 4);
    return (bits & 0x007fffff) - 0x00400000;
}

static inline vf clamped(vi level, int low, int high) {
    vi under = level < low, over = level > high;
    level = (under & low) | (~under & level);
    level = (over & high) | (~over & level);
    return __builtin_convertvector(level, vf);
}
static inline int clamped1(int level, int low, int high) { return level < low ? low : level > high ? high : level; }

/* Eight sub-blocks of n values each, value i of all eight in lanes[i]. */
static void gather(const float *x, int n, vf *lanes) {
    for (int i = 0; i < n; i++)
        for (int j = 0; j < LANES; j++) lanes[i][j] = x[n * j + i];
}

/* What a search leaves: scale and offset of each sub-block, and how to get the levels it chose. */
typedef struct {
    float scale[SUPER / 16], min[SUPER / 16];
    float step[SUPER / 16], base[SUPER / 16];
    int flat[SUPER / 16];
} Found;

/* ggml's make_qkx2_quants in every lane: scale and minimum by weighted least squares over trial steps. */
static inline __attribute__((always_inline)) void search_affine(
    const vf *x, const vf *weight, int n, int top, float first, float delta, int trials, int absolute, Found *found, int at) {
    vf low = x[0], high = x[0], sum_w = weight[0], sum_x = sum_w * x[0];
    for (int i = 1; i < n; i++) {
        low = select(x[i] < low, x[i], low);
        high = select(x[i] > high, x[i], high);
        sum_w += weight[i];
        sum_x += weight[i] * x[i];
    }
    low = select(low > 0.f, splat(0.f), low);
    vi flat = high == low;
    vf step = splat((float)top) / (high - low), scale = splat(1.f) / step, best = splat(0.f);
    vf base = low, best_step = step;
    vf level[32];
    for (int i = 0; i < n; i++) {
        vf miss = scale * clamped(nearest(step * (x[i] - low)), 0, top) + low - x[i];
        best += weight[i] * (absolute ? magnitude(miss) : miss * miss);
    }
    vf min = low;
    for (int trial = 0; trial <= trials; trial++) {
        step = splat(first + delta * (float)trial + (float)top) / (high - min);
        vf sum_l = splat(0.f), sum_l2 = splat(0.f), sum_xl = splat(0.f);
        for (int i = 0; i < n; i++) {
            vf l = clamped(nearest(step * (x[i] - min)), 0, top), wl = weight[i] * l;
            level[i] = l;
            sum_l += wl;
            sum_l2 += wl * l;
            sum_xl += wl * x[i];
        }
        vf det = sum_w * sum_l2 - sum_l * sum_l;
        vf try_scale = (sum_w * sum_xl - sum_x * sum_l) / det, try_min = (sum_l2 * sum_x - sum_l * sum_xl) / det;
        vi above = try_min > 0.f;
        try_scale = select(above, sum_xl / sum_l2, try_scale);
        try_min = select(above, splat(0.f), try_min);
        vf error = splat(0.f);
        for (int i = 0; i < n; i++) {
            vf miss = try_scale * level[i] + try_min - x[i];
            error += weight[i] * (absolute ? magnitude(miss) : miss * miss);
        }
        vi better = (det > 0.f) & (error < best);
        best_step = select(better, step, best_step);
        base = select(better, min, base);
        best = select(better, error, best);
        scale = select(better, try_scale, scale);
        min = select(better, try_min, min);
    }
    scale = select(flat, splat(0.f), scale);
    min = select(flat, low, min);
    for (int j = 0; j < LANES; j++) {
        found->scale[at + j] = scale[j];
        found->min[at + j] = -min[j];
        found->step[at + j] = best_step[j];
        found->base[at + j] = base[j];
        found->flat[at + j] = flat[j];
    }
}

/* Final levels under the stored scale d and minimum m; where d is 0 the search's own levels stay. */
static inline void final_affine(const float *x, int n, int top, float d, float m, const Found *found, int j, uint8_t *level) {
    if (d != 0.f)
        for (int i = 0; i < n; i++) level[i] = (uint8_t)clamped1(nearest1((x[i] + m) / d), 0, top);
    else
        for (int i = 0; i < n; i++)
            level[i] = found->flat[j] ? 0 : (uint8_t)clamped1(nearest1(found->step[j] * (x[i] - found->base[j])), 0, top);
}

void quantkit_q2_k(const float *x, uint8_t *out, int64_t count) {
    for (int64_t super = 0; super < count / SUPER; super++, x += SUPER, out += 84) {
        vf lanes[16], weight[16];
        Found found;
        uint8_t level[SUPER];
        for (int half = 0; half < 2; half++) {
            gather(x + 128 * half, 16, lanes);
            for (int i = 0; i < 16; i++) weight[i] = magnitude(lanes[i]);
            search_affine(lanes, weight, 16, 3, -0.5f, 0.1f, 15, 1, &found, 8 * half);
        }
        float max_scale = 0, max_min = 0;
        for (int j = 0; j < 16; j++) {
            if (found.scale[j] > max_scale) max_scale = found.scale[j];
            if (found.min[j] > max_min) max_min = found.min[j];
        }
        float by_scale = 15.f / max_scale, by_min = 15.f / max_min;
        uint16_t d = to_half(max_scale > 0 ? max_scale / 15.f : 0.f), dmin = to_half(max_min > 0 ? max_min / 15.f : 0.f);
        for (int j = 0; j < 16; j++) {
            out[j] = max_scale > 0 ? (uint8_t)nearest1(by_scale * found.scale[j]) : 0;
            if (max_min > 0) out[j] |= (uint8_t)(nearest1(by_min * found.min[j]) << 4);
            final_affine(
                x + 16 * j, 16, 3, from_half(d) * (float)(out[j] & 15), from_half(dmin) * (float)(out[j] >> 4), &found, j,
                level + 16 * j);
        }
        for (int j = 0; j < SUPER; j += 128)
            for (int i = 0; i < 32; i++) {
                const uint8_t *l = level + j + i;
                out[16 + j / 4 + i] = (uint8_t)(l[0] | l[32] << 2 | l[64] << 4 | l[96] << 6);
            }
        memcpy(out + 80, &d, 2);
        memcpy(out + 82, &dmin, 2);
    }
}

/* What Q4_K and Q5_K share: weights, search, six-bit scales and minimums in 12 bytes, final levels. */
static inline __attribute__((always_inline)) void affine32(
    const float *x, int top, float first, int trials, uint8_t *head, uint8_t *level) {
    vf lanes[32], weight[32], square = splat(0.f), mean;
    Found found;
    gather(x, 32, lanes);
    for (int i = 0; i < 32; i++) square += lanes[i] * lanes[i];
    square /= 32.f;
    for (int j = 0; j < LANES; j++) mean[j] = sqrtf(square[j]);
    for (int i = 0; i < 32; i++) weight[i] = mean + magnitude(lanes[i]);
    search_affine(lanes, weight, 32, top, first, 0.1f, trials, 0, &found, 0);
    float max_scale = 0, max_min = 0;
    for (int j = 0; j < 8; j++) {
        if (found.scale[j] > max_scale) max_scale = found.scale[j];
        if (found.min[j] > max_min) max_min = found.min[j];
    }
    float by_scale = max_scale > 0 ? 63.f / max_scale : 0.f, by_min = max_min > 0 ? 63.f / max_min : 0.f;
    uint16_t d = to_half(max_scale / 63.f), dmin = to_half(max_min / 63.f);
    uint8_t scale[8], min[8], *packed = head + 4;
    for (int j = 0; j < 8; j++) {
        uint8_t s = (uint8_t)nearest1(by_scale * found.scale[j]), m = (uint8_t)nearest1(by_min * found.min[j]);
        scale[j] = s > 63 ? 63 : s;
        min[j] = m > 63 ? 63 : m;
    }
    for (int j = 0; j < 4; j++) {
        packed[j] = (uint8_t)(scale[j] | (scale[j + 4] >> 4) << 6);
        packed[j + 4] = (uint8_t)(min[j] | (min[j + 4] >> 4) << 6);
        packed[j + 8] = (uint8_t)((scale[j + 4] & 15) | (min[j + 4] & 15) << 4);
    }
    memcpy(head, &d, 2);
    memcpy(head + 2, &dmin, 2);
    for (int j = 0; j < 8; j++)
        final_affine(
            x + 32 * j, 32, top, from_half(d) * (float)scale[j], from_half(dmin) * (float)min[j], &found, j, level + 32 * j);
}

void quantkit_q4_k(const float *x, uint8_t *out, int64_t count) {
    for (int64_t super = 0; super < count / SUPER; super++, x += SUPER, out += 144) {
        uint8_t level[SUPER];
        affine32(x, 15, -1.f, 20, out, level);
        for (int j = 0; j < SUPER; j += 64)
            for (int i = 0; i < 32; i++) out[16 + j / 2 + i] = (uint8_t)(level[j + i] | level[j + i + 32] << 4);
    }
}

void quantkit_q5_k(const float *x, uint8_t *out, int64_t count) {
    for (int64_t super = 0; super < count / SUPER; super++, x += SUPER, out += 176) {
        uint8_t level[SUPER];
        affine32(x, 31, -0.5f, 15, out, level);
        memset(out + 16, 0, 32);
        for (int j = 0; j < 4; j++)
            for (int i = 0; i < 32; i++) {
                uint8_t a = level[64 * j + i], b = level[64 * j + i + 32];
                out[16 + i] |= (uint8_t)((a >> 4 | (b >> 4) << 1) << (2 * j));
                out[48 + 32 * j + i] = (uint8_t)((a & 15) | (b & 15) << 4);
            }
    }
}

/* ggml's make_qx_quants in every lane, weights x squared: a symmetric scale over trial steps. */
static void search_symmetric(const vf *x, Found *found, int at) {
    vf peak = splat(0.f), size = splat(0.f);
    for (int i = 0; i < 16; i++) {
        vf a = magnitude(x[i]);
        vi larger = a > size;
        size = select(larger, a, size);
        peak = select(larger, x[i], peak);
    }
    vi flat = size < 1e-15f;
    vf best_step = splat(-32.f) / peak, scale = splat(0.f), best = splat(0.f);
    for (int trial = -10; trial <= 9; trial++) {
        /* The plain step comes first; trial 0 would repeat it. */
        if (trial == 0) continue;
        vf step = trial == -10 ? best_step : splat(-(32.f + 0.1f * (float)trial)) / peak;
        vf sum_lx = splat(0.f), sum_l2 = splat(0.f);
        for (int i = 0; i < 16; i++) {
            vf l = clamped(nearest(step * x[i]), -32, 31), w = x[i] * x[i];
            sum_lx += w * x[i] * l;
            sum_l2 += w * l * l;
        }
        vf ratio = sum_lx / sum_l2;
        if (trial == -10) {
            scale = select(sum_l2 != 0.f, ratio, splat(0.f));
            best = scale * sum_lx;
            continue;
        }
        vi better = (sum_l2 > 0.f) & (sum_lx * sum_lx > best * sum_l2);
        best_step = select(better, step, best_step);
        scale = select(better, ratio, scale);
        best = select(better, ratio * sum_lx, best);
    }
    for (int j = 0; j < LANES; j++) {
        found->scale[at + j] = flat[j] ? 0.f : scale[j];
        found->step[at + j] = best_step[j];
        found->flat[at + j] = flat[j];
    }
}

void quantkit_q6_k(const float *x, uint8_t *out, int64_t count) {
    for (int64_t super = 0; super < count / SUPER; super++, x += SUPER, out += 210) {
        vf lanes[16];
        Found found;
        uint8_t level[SUPER];
        float largest = 0, size = 0;
        for (int half = 0; half < 2; half++) {
            gather(x + 128 * half, 16, lanes);
            search_symmetric(lanes, &found, 8 * half);
        }
        for (int j = 0; j < 16; j++)
            if (fabsf(found.scale[j]) > size) {
                size = fabsf(found.scale[j]);
                largest = found.scale[j];
            }
        memset(out, 0, 210);
        if (size < 1e-15f) continue;
        float by = -128.f / largest;
        uint16_t half = to_half(1 / by);
        memcpy(out + 208, &half, 2);
        for (int j = 0; j < 16; j++) {
            int s = nearest1(by * found.scale[j]);
            int8_t stored = (int8_t)(s > 127 ? 127 : s);
            float d = from_half(half) * (float)stored;
            out[192 + j] = (uint8_t)stored;
            for (int i = 0; i < 16; i++) {
                float value = x[16 * j + i];
                int l = d != 0.f ? nearest1(value / d) : nearest1(found.step[j] * value);
                level[16 * j + i] = d == 0.f && found.flat[j] ? 0 : (uint8_t)(clamped1(l, -32, 31) + 32);
            }
        }
        for (int j = 0; j < 2; j++)
            for (int i = 0; i < 32; i++) {
                const uint8_t *l = level + 128 * j + i;
                out[64 * j + i] = (uint8_t)((l[0] & 15) | (l[64] & 15) << 4);
                out[64 * j + i + 32] = (uint8_t)((l[32] & 15) | (l[96] & 15) << 4);
                out[128 + 32 * j + i] = (uint8_t)(l[0] >> 4 | (l[32] >> 4) << 2 | (l[64] >> 4) << 4 | (l[96] >> 4) << 6);
            }
    }
}
