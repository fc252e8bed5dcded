/* The searches of ggml-quants.c for the scale of a sub-block, one sub-block in every lane. */

#ifndef QUANTKIT_SEARCH_H
#define QUANTKIT_SEARCH_H

#include "lanes.h"

/* Importance times sqrt(sigma2 + x^2), the weight of a value's error. */
INLINE void importance_weights(const Batch *batch, int at, int n, vf sigma2, const vf *x, vf *weight) {
    load(batch->importance, at, n, weight);
    for (int i = 0; i < n; i++) weight[i] = weight[i] * square_root(sigma2 + x[i] * x[i]);
}
INLINE vf total(const vf *x, int n) {
    vf sum = splat(0.f);
    for (int i = 0; i < n; i++) sum += x[i];
    return sum;
}
INLINE vf sum_of_squares(const vf *x, int n) {
    vf sum = splat(0.f);
    for (int i = 0; i < n; i++) sum += x[i] * x[i];
    return sum;
}

/* A scale and a minimum (of affine types), and how to get the levels that the search chose: those of
 * step * (x - base), or 0 where the sub-block is flat. */
typedef struct {
    vf scale, min, step, base;
    vi flat;
    vi plain; /* the first step, which no trial improved on */
} Fit;

/* Below this ggml takes a sub-block for zero (GROUP_MAX_EPS). */
#define ZERO_BLOCK 1e-15f

/* The level of step * (x - min), of any size. Newer versions of ggml clamp before they round, which differs where the
 * minimum comes close to the maximum. */
INLINE vi wild_level(vf v, int top, int clamps_first) {
    if (!clamps_first) return clamped(nearest(v), 0, top);
    return nearest(least(v, splat((float)top))) & (v > 0.f);
}

/* Levels and their weighted sums for one trial step. `wild`: step * (x - min) may exceed the range of `rounded`. */
INLINE void trial_levels(
    const vf *x, const vf *weight, int n, float top, vf step, vf min, int wild, int clamps_first, vf *level,
    vf *sums) {
    vf sum_l = splat(0.f), sum_l2 = sum_l, sum_xl = sum_l, zero = sum_l, most = splat(top);
    for (int i = 0; i < n; i++) {
        vf v = step * (x[i] - min), l;
        if (wild)
            l = floats(wild_level(v, (int)top, clamps_first));
        else
            l = least(greatest(rounded(v), zero), most);
        vf wl = weight[i] * l;
        level[i] = l;
        sum_l += wl;
        sum_l2 += wl * l;
        sum_xl += wl * x[i];
    }
    sums[0] = sum_l, sums[1] = sum_l2, sums[2] = sum_xl;
}

/* make_qkx2_quants and make_qkx3_quants: scale and minimum by weighted least squares over trial
 * steps. The error of a value is its square, or its magnitude with `magnitudes`. */
INLINE Fit search_affine(
    const vf *x, const vf *weight, int n, float top, float first, float delta, int trials, int magnitudes,
    int clamps_first) {
    vf low = x[0], high = x[0], sum_w = weight[0], sum_x = sum_w * x[0], zero = splat(0.f), best = zero;
    for (int i = 1; i < n; i++) {
        low = least(x[i], low);
        high = greatest(x[i], high);
        sum_w += weight[i];
        sum_x += weight[i] * x[i];
    }
    low = blend(low > 0.f, zero, low);
    Fit fit = {.flat = high <= low, .plain = splat_int(-1), .min = low, .base = low, .step = splat(top) / (high - low)};
    fit.scale = splat(1.f) / fit.step;
    for (int i = 0; i < n; i++) {
        vf level = floats(clamped(nearest(fit.step * (x[i] - low)), 0, (int)top));
        vf miss = fit.scale * level + low - x[i];
        best += weight[i] * (magnitudes ? absolute(miss) : miss * miss);
    }
    for (int trial = 0; trial <= trials; trial++) {
        vf step = splat(first + delta * (float)trial + top) / (high - fit.min);
        vf level[32], sums[3];
        vi tame = (absolute(step * (low - fit.min)) < 4e6f) & (absolute(step * (high - fit.min)) < 4e6f);
        if (!any(~(tame | fit.flat)))
            trial_levels(x, weight, n, top, step, fit.min, 0, 0, level, sums);
        else
            trial_levels(x, weight, n, top, step, fit.min, 1, clamps_first, level, sums);
        vf sum_l = sums[0], sum_l2 = sums[1], sum_xl = sums[2];
        vf det = sum_w * sum_l2 - sum_l * sum_l;
        vf scale = (sum_w * sum_xl - sum_x * sum_l) / det, min = (sum_l2 * sum_x - sum_l * sum_xl) / det;
        vi above = min > 0.f;
        scale = blend(above, sum_xl / sum_l2, scale);
        min = blend(above, zero, min);
        vf error = zero;
        for (int i = 0; i < n; i++) {
            vf miss = scale * level[i] + min - x[i];
            error += weight[i] * (magnitudes ? absolute(miss) : miss * miss);
        }
        vi better = (det > 0.f) & (error < best);
        fit.plain &= ~better;
        fit.step = blend(better, step, fit.step);
        fit.base = blend(better, fit.min, fit.base);
        best = blend(better, error, best);
        fit.scale = blend(better, scale, fit.scale);
        fit.min = blend(better, min, fit.min);
    }
    fit.scale = blend(fit.flat, zero, fit.scale);
    fit.min = blend(fit.flat, low, fit.min);
    return fit;
}

/* The levels that `search_affine` chose. */
INLINE vi affine_level(const Fit *fit, vf x, int top, int clamps_first) {
    vf v = fit->step * (x - fit->base);
    return blend_int(fit->plain, clamped(nearest(v), 0, top), wild_level(v, top, clamps_first)) & ~fit->flat;
}

/* The value of largest magnitude, the first of equal ones; its magnitude in *size. */
INLINE vf peak(const vf *x, int n, vf *size) {
    vf largest = splat(0.f), value = largest;
    for (int i = 0; i < n; i++) {
        vf a = absolute(x[i]);
        vi more = a > largest;
        largest = blend(more, a, largest);
        value = blend(more, x[i], value);
    }
    *size = largest;
    return value;
}

/* The trial steps first..last of `search_symmetric`. `below`, `above`: a level may exceed the range at this end. */
INLINE void symmetric_trials(
    const vf *x, const vf *weight, const vf *weighted, int n, float top, vf extreme, int first, int last, int wild,
    int below, int above, Fit *fit, vf *best) {
    for (int trial = first; trial <= last; trial++) {
        if (trial == 0) continue;
        int plain = trial == -10;
        vf step = plain ? fit->step : splat(-(top + 0.1f * (float)trial)) / extreme;
        vf sum_lx = splat(0.f), sum_l2 = sum_lx;
        for (int i = 0; i < n; i++) {
            vf v = step * x[i], l;
            if (wild)
                l = floats(clamped(nearest(v), (int)-top, (int)top - 1));
            else {
                l = rounded(v);
                if (below) l = greatest(l, splat(-top));
                if (above) l = least(l, splat(top - 1.f));
            }
            sum_lx += weighted[i] * l;
            sum_l2 += weight[i] * l * l;
        }
        vf ratio = sum_lx / sum_l2;
        if (plain) {
            fit->scale = blend(sum_l2 != 0.f, ratio, splat(0.f));
            *best = fit->scale * sum_lx;
            continue;
        }
        vi better = (sum_l2 > 0.f) & (sum_lx * sum_lx > *best * sum_l2);
        fit->step = blend(better, step, fit->step);
        fit->scale = blend(better, ratio, fit->scale);
        *best = blend(better, ratio * sum_lx, *best);
    }
}

/* make_qx_quants: a symmetric scale over trial steps; levels -top..top - 1, stored from 0.
 *
 * The plain step comes first, as trial -10; trial 0 would repeat it. The value of largest magnitude becomes
 * -(top + trial / 10), so a level can be below the range from trial 5 on, and above it, for the same magnitude with the
 * other sign, except in the trials -9 to -6. */
INLINE Fit search_symmetric(const vf *x, const vf *weight, int n, float top, int wild) {
    vf size, extreme = peak(x, n, &size), zero = splat(0.f), best = zero, weighted[32];
    Fit fit = {.flat = size < ZERO_BLOCK, .step = splat(-top) / extreme, .scale = zero, .min = zero, .base = zero};
    for (int i = 0; i < n; i++) weighted[i] = weight[i] * x[i];
    if (wild)
        symmetric_trials(x, weight, weighted, n, top, extreme, -10, 9, 1, 1, 1, &fit, &best);
    else {
        symmetric_trials(x, weight, weighted, n, top, extreme, -10, -10, 0, 0, 1, &fit, &best);
        symmetric_trials(x, weight, weighted, n, top, extreme, -9, -6, 0, 0, 0, &fit, &best);
        symmetric_trials(x, weight, weighted, n, top, extreme, -5, 4, 0, 0, 1, &fit, &best);
        symmetric_trials(x, weight, weighted, n, top, extreme, 5, 9, 0, 1, 1, &fit, &best);
    }
    fit.scale = blend(fit.flat, zero, fit.scale);
    return fit;
}

/* The levels of `search_symmetric`, stored from 0. */
INLINE vi symmetric_level(const Fit *fit, vf x, int top) {
    return blend_int(fit->flat, splat_int(0), clamped(nearest(fit->step * x), -top, top - 1) + top);
}

#endif
