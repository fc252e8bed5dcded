/* The coordinate descents of ggml-quants.c: levels of a sub-block that change one by one while its error falls. */

#ifndef QUANTKIT_DESCENT_H
#define QUANTKIT_DESCENT_H

#include "search.h"

/* One step of the coordinate descent of make_q3_quants and make_qp_quants: the nearest level of x under the other
 * values' best scale replaces `level` where that raises sum_lx^2 / sum_l2. Returns the lanes that changed. */
INLINE vi improve_level(
    vf x, vf weight, vf level, vi allowed, vf others_lx, vf others_l2, vi wanted, int unless_zero, vf *sum_lx,
    vf *sum_l2) {
    vf want = floats(wanted);
    vf lx = others_lx + weight * x * want, l2 = others_l2 + weight * want * want;
    vi better = allowed & (want != level) & (lx * lx * *sum_l2 > *sum_lx * *sum_lx * l2);
    if (unless_zero) better &= l2 > 0.f;
    *sum_lx = blend(better, lx, *sum_lx);
    *sum_l2 = blend(better, l2, *sum_l2);
    return better;
}

/* make_q3_quants: symmetric scales of TOGETHER sub-blocks by coordinate descent, weights x squared; levels 0..7 for
 * -4..3. A step that changes a level waits for the one before it, so several sub-blocks take their steps in turn.
 *
 * Most steps change no level, and two products show it without a division: the wanted level is the old one if
 * x * others_l2 / others_lx is less than half a level away from it. SURE is a little less than half, because the quotient
 * is rounded. The lowest level has no lower bound, and the highest no upper bound. */
enum { TOGETHER = 2 };
#define SURE 0.4999f
typedef struct {
    vf level, lx, l2; /* the level, and its terms of the sums */
    vf low, high;     /* the bounds */
} Step;
INLINE Step step_of(vf x, vf level) {
    vf w = x * x;
    return (Step){
        .level = level,
        .lx = w * x * level,
        .l2 = w * level * level,
        .low = blend(level == -4.f, splat(-INFINITY), level - SURE),
        .high = blend(level == 3.f, splat(INFINITY), level + SURE),
    };
}
INLINE void search_descent(const vf *x, vf *scale, vi *level) {
    vf sum_lx[TOGETHER], sum_l2[TOGETHER];
    vi flat[TOGETHER];
    Step steps[16 * TOGETHER];
    for (int j = 0; j < TOGETHER; j++) {
        vf size, step = splat(-4.f) / peak(x + 16 * j, 16, &size);
        flat[j] = size < ZERO_BLOCK;
        sum_lx[j] = sum_l2[j] = splat(0.f);
        for (int i = 16 * j; i < 16 * j + 16; i++) {
            steps[i] = step_of(x[i], floats(clamped(nearest(step * x[i]), -4, 3)));
            sum_lx[j] += steps[i].lx;
            sum_l2[j] += steps[i].l2;
        }
    }
    for (int round = 0; round < 5; round++) {
        vi changed = splat_int(0);
        for (int first = 0; first < 16; first++)
            UNROLLED
            for (int j = 0, i = first; j < TOGETHER; j++, i += 16) {
                const Step *s = &steps[i];
                vf others_lx = sum_lx[j] - s->lx, others_l2 = sum_l2[j] - s->l2, product = x[i] * others_l2;
                if (!any_beyond(product, s->low * others_lx, s->high * others_lx, others_lx)) continue;
                vi wanted = clamped(nearest(product / others_lx), -4, 3);
                vi better = improve_level(
                    x[i], x[i] * x[i], s->level, others_lx > 0.f, others_lx, others_l2, wanted, 1, &sum_lx[j],
                    &sum_l2[j]);
                steps[i] = step_of(x[i], blend(better, floats(wanted), s->level));
                changed |= better & ~flat[j];
            }
        if (!any(changed)) break;
    }
    for (int j = 0; j < TOGETHER; j++) {
        for (int i = 16 * j; i < 16 * j + 16; i++) level[i] = (truncated(steps[i].level) + 4) & ~flat[j];
        scale[j] = blend((sum_l2[j] > 0.f) & ~flat[j], sum_lx[j] / sum_l2[j], splat(0.f));
    }
}

/* make_qp_quants: the scale of non-negative x with levels 0..top, by trial steps and coordinate descent. Levels are
 * kept in a byte there, so a negative one wraps. */
INLINE vf search_positive(const vf *x, const vf *weight, int n, int top, vi *level) {
    vf zero = splat(0.f), high = zero, best = zero, sum_lx = zero, sum_l2 = zero;
    for (int i = 0; i < n; i++) high = greatest(high, x[i]);
    vi flat = high < ZERO_BLOCK, most = splat_int(top);
    vf chosen = splat((float)top) / high, scale = splat(1.f) / chosen;
    for (int i = 0; i < n; i++) {
        vf miss = x[i] - scale * floats(nearest(chosen * x[i]) & 255);
        best += weight[i] * miss * miss;
    }
    for (int trial = -4; trial <= 4; trial++) {
        if (trial == 0) continue;
        vf step = splat(0.1f * (float)trial + (float)top) / high, error = zero;
        scale = splat(1.f) / step;
        for (int i = 0; i < n; i++) {
            vi l = nearest(step * x[i]);
            vf miss = x[i] - scale * floats(blend_int(l < most, l, most));
            error += weight[i] * miss * miss;
        }
        vi better = error < best;
        best = blend(better, error, best);
        chosen = blend(better, step, chosen);
    }
    for (int i = 0; i < n; i++) {
        vi l = nearest(chosen * x[i]);
        l = blend_int(l < most, l, most);
        level[i] = l & 255;
        sum_lx += weight[i] * x[i] * floats(l);
        sum_l2 += weight[i] * floats(l) * floats(l);
    }
    for (int round = 0; round < 5; round++) {
        vi changed = splat_int(0);
        for (int i = 0; i < n; i++) {
            vf l = floats(level[i]);
            vf others_lx = sum_lx - weight[i] * x[i] * l, others_l2 = sum_l2 - weight[i] * l * l;
            vi wanted = nearest(x[i] * others_l2 / others_lx);
            wanted = blend_int(wanted < most, wanted, most);
            vi allowed = (others_lx > 0.f) & (others_l2 > 0.f);
            vi better =
                improve_level(x[i], weight[i], l, allowed, others_lx, others_l2, wanted, 0, &sum_lx, &sum_l2);
            level[i] = blend_int(better, wanted & 255, level[i]);
            changed |= better;
        }
        if (!any(changed & ~flat)) break;
    }
    for (int i = 0; i < n; i++) level[i] = blend_int(flat, splat_int(0), level[i]);
    return blend((sum_l2 > 0.f) & ~flat, sum_lx / sum_l2, zero);
}

#endif
