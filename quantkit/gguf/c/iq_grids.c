/* IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S, with and without an importance matrix (quantize_row_iq2_* and
 * quantize_row_iq3_* of ggml-quants.c). Every lane holds a super-block of 256 values; a search for the nearest grid point
 * holds a neighbour in every lane.
 *
 * A point is a code: the levels of 8 values in 2 bits each, or of 4 values in 3 bits each. Level l stands for 2 l + 1.
 */

#include "along.h"
#include "descent.h"

#include <float.h>

enum { SUPER = 256, STEP = 16 /* lists of neighbours are padded to a multiple */ };

/* The tables of a type (lattice.py). `place` is a code in base 3 or 8. A place on the grid has no neighbours. */
typedef struct {
    const int32_t *start;     /* (places + 1,): the neighbours of a place, in steps of 16 codes */
    const uint16_t *neighbour; /* (steps * 16,): codes in the order in which ggml compares them */
    const uint16_t *index;    /* (places,): the number of the grid point */
} Grid;

enum { IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, GRIDS };
static Grid GRID[GRIDS];

void quantkit_set_grid(int type, const int32_t *start, const uint16_t *neighbour, const uint16_t *index) {
    GRID[type] = (Grid){start, neighbour, index};
}

/* What differs between the types. */
typedef struct {
    int type, n, trials;
    int dims, bits, levels; /* of a point */
    int even;               /* an even number of values of each eight is negative, so seven signs are stored */
    float delta, smallest;  /* between trial steps; below this a sub-block is zero */
    float fudge;            /* of the stored scale */
} Shape;

INLINE vf smallest_lane(vf v) {
    v = least(v, (vf)EXCHANGE_HALVES((vi)v));
    if (LANES > 8) v = least(v, (vf)EXCHANGE_4((vi)v));
    if (LANES > 4) v = least(v, (vf)EXCHANGE_2((vi)v));
    return least(v, (vf)EXCHANGE_1((vi)v));
}
INLINE vi lane_numbers(void) {
    vi numbers;
    EACH_LANE numbers[k] = k;
    return numbers;
}

/* The nearest of a list of points to one lane's x: the first of those with the least sum of w (scale q - x)^2. x and w
 * have a stride of LANES. */
INLINE int nearest_code(
    const Shape *shape, const uint16_t *code, int count, const float *x, const float *w, float scale) {
    vf least_sum = splat(FLT_MAX), first = splat(0.f), sum;
    vi numbers = lane_numbers();
    int mask = (1 << shape->bits) - 1;
#if LANES >= 8 && !defined __clang__
    /* the cost of every level of a value, looked up by the low bits of a code */
    vf cost[8], q = splat(scale) * floats((numbers & mask) * 2 + 1);
    UNROLLED
    for (int i = 0; i < shape->dims; i++) {
        vf miss = q - splat(x[i * LANES]);
        cost[i] = splat(w[i * LANES]) * miss * miss;
    }
#endif
    for (int at = 0; at < count; at += LANES) {
        vi codes = splat_int(0);
        EACH_LANE codes[k] = code[at + k];
        UNROLLED
        for (int i = 0; i < shape->dims; i++) {
#if LANES >= 8 && !defined __clang__
            vf more = __builtin_shuffle(cost[i], codes >> shape->bits * i);
#else
            vf q = floats((codes >> shape->bits * i & mask) * 2 + 1), miss = splat(scale) * q - splat(x[i * LANES]);
            vf more = splat(w[i * LANES]) * miss * miss;
#endif
            sum = i ? sum + more : more;
        }
        vi better = sum < least_sum;
        least_sum = blend(better, sum, least_sum);
        first = blend(better, floats(numbers + at), first);
    }
    vi equal = least_sum == smallest_lane(least_sum);
    return code[(int)smallest_lane(blend(equal, first, splat(FLT_MAX)))[0]];
}

/* The place of a code's levels. */
INLINE vi place_of(const Shape *shape, vi code) {
    if (shape->bits == 3) return code;
    vi place = splat_int(0);
    UNROLLED
    for (int i = shape->dims - 1; i >= 0; i--) place = place * 3 + (code >> 2 * i & 3);
    return place;
}

/* The grid points for x under a scale and its inverse, as codes; *on: the lanes whose rounded levels are on the grid. */
INLINE vi snap(const Shape *shape, const vf *x, const vf *w, vf scale, vf inverse, vi wanted, vi *on) {
    const Grid *grid = &GRID[shape->type];
    vi code = splat_int(0);
    UNROLLED
    for (int i = 0; i < shape->dims; i++) {
        vi level = clamped(nearest(0.5f * (inverse * x[i] - 1.f)), 0, shape->levels - 1);
        code |= level << shape->bits * i;
    }
    vi place = place_of(shape, code);
    *on = splat_int(-1);
    EACH_LANE {
        int start = grid->start[place[k]], end = grid->start[place[k] + 1];
        if (start == end || !wanted[k]) continue;
        const float *lane_x = (const float *)x + k, *lane_w = (const float *)w + k;
        (*on)[k] = 0;
        code[k] = nearest_code(shape, grid->neighbour + STEP * start, STEP * (end - start), lane_x, lane_w, scale[k]);
    }
    return code;
}

/* The weighted sums of x q and q^2 over a sub-block. */
INLINE void sums_of(const Shape *shape, const vf *x, const vf *weight, const vi *code, vf *sum_qx, vf *sum_q2) {
    int mask = (1 << shape->bits) - 1;
    *sum_qx = *sum_q2 = splat(0.f);
    UNROLLED
    for (int i = 0; i < shape->n; i++) {
        vf q = floats((code[i / shape->dims] >> shape->bits * (i % shape->dims) & mask) * 2 + 1);
        *sum_qx += weight[i] * x[i] * q;
        *sum_q2 += weight[i] * q * q;
    }
}

/* Signs of eight values, and their magnitudes in `size`. With `even`, the value that costs least to negate makes the
 * number of negative ones even. */
INLINE vi take_signs(const vf *x, const vf *weight, int even, vf *size) {
    vi signs = splat_int(0), odd = signs, at = signs;
    for (int i = 0; i < 8; i++) {
        vi negative = ~(x[i] >= 0.f);
        size[i] = blend(negative, -x[i], x[i]);
        signs |= negative & 1 << i;
        odd ^= negative;
    }
    if (!even) return signs;
    vf cheapest = weight[0] * x[0] * x[0];
    for (int i = 1; i < 8; i++) {
        vf cost = weight[i] * x[i] * x[i];
        vi less = cost < cheapest;
        cheapest = blend(less, cost, cheapest);
        at = blend_int(less, splat_int(i), at);
    }
    for (int i = 0; i < 8; i++) {
        vi flip = odd & (at == i);
        size[i] = blend(flip, -size[i], size[i]);
        signs ^= flip & 1 << i;
    }
    return signs & 127;
}

/* What the search of a sub-block finds: its scale, 0 and flat where it is zero; points and signs of eight values. */
typedef struct {
    vf scale;
    vi flat, code[8], signs[4];
} GridFit;

INLINE GridFit search_grid(const Shape *shape, const Batch *batch, int at, vf sigma2, const vf *x) {
    vf weight[32], root[32], size[32], zero = splat(0.f), best = zero, sum_qx, sum_q2;
    vi on[8], all = splat_int(-1);
    int n = shape->n, groups = n / shape->dims, top = 2 * shape->levels - 1;
    GridFit fit;
    if (batch->importance[0])
        importance_weights(batch, at, n, sigma2, x, weight);
    else
        for (int i = 0; i < n; i++) weight[i] = shape->type == IQ2_S ? 0.25f * sigma2 + x[i] * x[i] : x[i] * x[i];
    for (int i = 0; i < n; i++) root[i] = square_root(weight[i]);
    for (int k = 0; k < n / 8; k++) fit.signs[k] = take_signs(x + 8 * k, weight + 8 * k, shape->even, size + 8 * k);
    vf most = size[0];
    for (int i = 1; i < n; i++) most = greatest(most, size[i]);
    fit.flat = shape->type == IQ3_S ? most == 0.f : most < shape->smallest;
    fit.scale = most / (float)top;
    for (int k = 0; k < groups; k++) {
        fit.code[k] = splat_int(0);
        on[k] = splat_int(shape->type == IQ3_S ? 0 : -1);
    }
    if (shape->type == IQ2_XXS) {
        vi level[32];
        fit.scale = search_positive(size, weight, n, shape->levels + 1, level);
        most = fit.scale * 3.f;
        fit.flat |= most <= 0.f;
    }
    for (int trial = -shape->trials; trial <= shape->trials; trial++) {
        vf inverse = splat((float)top + (float)trial * shape->delta) / most, scale = splat(1.f) / inverse;
        vi code[8], on_now[8];
        for (int k = 0; k < groups; k++) {
            int i = shape->dims * k;
            code[k] = snap(shape, size + i, root + i, scale, inverse, ~fit.flat, &on_now[k]);
        }
        sums_of(shape, size, weight, code, &sum_qx, &sum_q2);
        vi better = (sum_q2 > 0.f) & (sum_qx * sum_qx > best * sum_q2);
        vf ratio = sum_qx / sum_q2;
        fit.scale = blend(better, ratio, fit.scale);
        best = blend(better, ratio * sum_qx, best);
        for (int k = 0; k < groups; k++) {
            fit.code[k] = blend_int(better, code[k], fit.code[k]);
            on[k] = blend_int(better, on_now[k], on[k]);
        }
    }
    /* Points under the chosen scale: of all values, or of those whose levels were not on the grid. */
    vi again = splat_int(shape->type == IQ2_XXS ? -1 : 0), ignored;
    for (int k = 0; k < groups; k++) again |= ~on[k];
    again &= (fit.scale > 0.f) & ~fit.flat;
    vf inverse = splat(1.f) / fit.scale;
    for (int k = 0; k < groups; k++) {
        int i = shape->dims * k;
        vi these = again & (shape->type == IQ2_XXS || shape->type == IQ3_S ? all : ~on[k]);
        vi code = snap(shape, size + i, root + i, fit.scale, inverse, these, &ignored);
        fit.code[k] = blend_int(these, code, fit.code[k]);
    }
    sums_of(shape, size, weight, fit.code, &sum_qx, &sum_q2);
    fit.scale = blend(again & (sum_q2 > 0.f), sum_qx / sum_q2, fit.scale);
    vi negative = fit.scale < 0.f;
    fit.scale = blend(fit.flat, zero, blend(negative, -fit.scale, fit.scale));
    for (int k = 0; k < n / 8; k++) fit.signs[k] ^= negative & (shape->even ? 127 : 255);
    return fit;
}

/* The numbers of a sub-block's grid points. */
INLINE void grid_indices(const Shape *shape, const GridFit *fit, vi *index) {
    for (int i = 0; i < shape->n / shape->dims; i++) {
        vi place = place_of(shape, fit->code[i]);
        EACH_LANE place[k] = GRID[shape->type].index[place[k]];
        index[i] = place;
    }
}

/* The stored scale of a super-block, and the levels 0..15 of its sub-blocks' scales. Returns the lanes that are not zero. */
INLINE vi scale_levels(const Shape *shape, const vf *scale, vi *half, vi *level) {
    vf most = splat(0.f);
    for (int j = 0; j < SUPER / shape->n; j++) most = greatest(most, scale[j]);
    vi some = most != 0.f;
    vf d = most / 31.f, inverse = splat(1.f) / d;
    *half = to_halves(d * shape->fudge) & some;
    for (int j = 0; j < SUPER / shape->n; j++)
        level[j] = clamped(nearest(0.5f * (inverse * scale[j] - 1.f)), 0, 15) & some;
    return some;
}
INLINE void store_four(vi four, uint8_t *const *out, int at) { EACH_LANE memcpy(out[k] + at, &((int32_t *)&four)[k], 4); }

INLINE vf load_super_block(const Batch *batch, vf *x) {
    load(batch->x, 0, SUPER, x);
    return sum_of_squares(x, SUPER) / 256.f;
}

static void iq2_xxs(const Batch *batch) {
    static const Shape shape = {IQ2_XXS, 32, 6, 8, 2, 3, 1, 0.1f, ZERO_BLOCK, 1.f};
    vf x[SUPER], scale[8], sigma2 = load_super_block(batch, x);
    vi points[8], signs[8], level[8], index[8], half;
    for (int j = 0; j < 8; j++) {
        GridFit fit = search_grid(&shape, batch, 32 * j, sigma2, x + 32 * j);
        grid_indices(&shape, &fit, index);
        points[j] = (index[0] | index[1] << 8 | index[2] << 16 | index[3] << 24) & ~fit.flat;
        signs[j] = fit.signs[0] | fit.signs[1] << 7 | fit.signs[2] << 14 | fit.signs[3] << 21;
        signs[j] &= ~fit.flat;
        scale[j] = fit.scale;
    }
    vi some = scale_levels(&shape, scale, &half, level);
    store_word(half, batch->out, 0);
    for (int j = 0; j < 8; j++) {
        store_four(points[j] & some, batch->out, 2 + 8 * j);
        store_four((signs[j] | level[j] << 28) & some, batch->out, 6 + 8 * j);
    }
}

static void iq2_xs(const Batch *batch) {
    static const Shape shape = {IQ2_XS, 16, 9, 8, 2, 3, 1, 0.1f, ZERO_BLOCK, 1.f};
    vf x[SUPER], scale[16], sigma2 = load_super_block(batch, x);
    vi points[16], level[16], index[8], half;
    for (int j = 0; j < 16; j++) {
        GridFit fit = search_grid(&shape, batch, 16 * j, sigma2, x + 16 * j);
        grid_indices(&shape, &fit, index);
        points[j] = index[0] | fit.signs[0] << 9 | (index[1] | fit.signs[1] << 9) << 16;
        points[j] &= ~fit.flat;
        scale[j] = fit.scale;
    }
    vi some = scale_levels(&shape, scale, &half, level);
    store_word(half, batch->out, 0);
    for (int j = 0; j < 16; j++) store_four(points[j] & some, batch->out, 2 + 4 * j);
    for (int j = 0; j < 8; j++) store_byte(level[2 * j] | level[2 * j + 1] << 4, batch->out, 66 + j);
}

static void iq2_s(const Batch *batch) {
    static const Shape shape = {IQ2_S, 16, 9, 8, 2, 3, 0, 0.1f, 1e-8f, 0.9875f};
    vf x[SUPER], scale[16], sigma2 = load_super_block(batch, x) * 2.f;
    vi level[16], index[8], half, high[8];
    for (int j = 0; j < 16; j++) {
        GridFit fit = search_grid(&shape, batch, 16 * j, sigma2, x + 16 * j);
        grid_indices(&shape, &fit, index);
        if (j % 2 == 0) high[j / 2] = splat_int(0);
        for (int k = 0; k < 2; k++) {
            store_byte(index[k] & 255 & ~fit.flat, batch->out, 2 + 2 * j + k);
            store_byte(fit.signs[k] & ~fit.flat, batch->out, 34 + 2 * j + k);
            high[j / 2] |= (index[k] >> 8 & ~fit.flat) << 2 * ((2 * j + k) % 4);
        }
        scale[j] = fit.scale;
    }
    scale_levels(&shape, scale, &half, level);
    store_word(half, batch->out, 0);
    for (int j = 0; j < 8; j++) {
        store_byte(high[j], batch->out, 66 + j);
        store_byte(level[2 * j] | level[2 * j + 1] << 4, batch->out, 74 + j);
    }
}

static void iq3_xxs(const Batch *batch) {
    static const Shape shape = {IQ3_XXS, 32, 15, 4, 3, 8, 1, 0.2f, 1e-8f, 1.0125f};
    vf x[SUPER], scale[8], sigma2 = load_super_block(batch, x) * 2.f;
    vi points[16], signs[8], level[8], index[8], half;
    for (int j = 0; j < 8; j++) {
        GridFit fit = search_grid(&shape, batch, 32 * j, sigma2, x + 32 * j);
        grid_indices(&shape, &fit, index);
        for (int k = 0; k < 2; k++) {
            const vi *four = index + 4 * k;
            points[2 * j + k] = (four[0] | four[1] << 8 | four[2] << 16 | four[3] << 24) & ~fit.flat;
        }
        signs[j] = fit.signs[0] | fit.signs[1] << 7 | fit.signs[2] << 14 | fit.signs[3] << 21;
        signs[j] &= ~fit.flat;
        scale[j] = fit.scale;
    }
    vi some = scale_levels(&shape, scale, &half, level);
    store_word(half, batch->out, 0);
    for (int j = 0; j < 16; j++) store_four(points[j] & some, batch->out, 2 + 4 * j);
    for (int j = 0; j < 8; j++) store_four((signs[j] | level[j] << 28) & some, batch->out, 66 + 4 * j);
}

/* ggml leaves out the points and signs of a sub-block of zeros, and those of the next ones move up. */
static void iq3_s(const Batch *batch) {
    static const Shape shape = {IQ3_S, 32, 9, 4, 3, 8, 0, 0.2f, 0.f, 1.033f};
    vf x[SUPER], scale[8], sigma2 = load_super_block(batch, x) * 2.f;
    vi level[8], index[8], half, used = splat_int(0);
    EACH_LANE memset(batch->out[k], 0, 110);
    for (int j = 0; j < 8; j++) {
        GridFit fit = search_grid(&shape, batch, 32 * j, sigma2, x + 32 * j);
        grid_indices(&shape, &fit, index);
        vi high = splat_int(0);
        for (int i = 0; i < 8; i++) high |= index[i] >> 8 << i;
        store_byte(high & ~fit.flat, batch->out, 66 + j);
        EACH_LANE {
            uint8_t *out = batch->out[k];
            if (fit.flat[k]) continue;
            for (int i = 0; i < 8; i++) out[2 + 8 * used[k] + i] = (uint8_t)index[i][k];
            for (int i = 0; i < 4; i++) out[74 + 4 * used[k] + i] = (uint8_t)fit.signs[i][k];
        }
        used -= ~fit.flat;
        scale[j] = fit.scale;
    }
    scale_levels(&shape, scale, &half, level);
    store_word(half, batch->out, 0);
    for (int j = 0; j < 4; j++) store_byte(level[2 * j] | level[2 * j + 1] << 4, batch->out, 106 + j);
}

EXPORT(iq2_xxs, 256, 66)
EXPORT(iq2_xs, 256, 74)
EXPORT(iq2_s, 256, 82)
EXPORT(iq3_xxs, 256, 98)
EXPORT(iq3_s, 256, 110)
