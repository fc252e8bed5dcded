/* Error feedback in GGUF blocks: the search for scales and the inner steps, sixteen rows side by side.
 *
 * Each function does the float operations of its namesake in block_search.py and block_steps.py, in the same order, so
 * the bytes are equal. A vector lane is a row; sums run over the columns in order. Compile with -ffp-contract=off.
 * Matrices have columns first, with `n_rows` values to a column. Built by block_kernels.py.
 */

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("vect-cost-model=unlimited")
#endif

#include <math.h>
#include <stdint.h>

#include "half.h"

enum { ROWS = 16, MOST_GROUP = 32, MOST_BLOCK = 256, MOST_GROUPS = 16 };
#define EACH_ROW for (int r = 0; r < ROWS; r++)

typedef float lanes[ROWS];

/* A block format; by_half: the point nearest to each half, from twice the lowest on, or NULL if all integers are. */
typedef struct {
    int64_t group, groups;
    float low, high, least_scale, greatest_scale, greatest_minimum;
    const float *by_half;
} Format;

static const float TINY = 1e-30f, SINGULAR = 1e-6f, LATTICE = 0.0025f;

static inline float bounded(float x, float low, float high) {
    x = x > low ? x : low; /* a value that is not a number becomes `low` */
    return x < high ? x : high;
}

static inline __attribute__((always_inline)) void nearest_points(const Format *f, float *v) {
    if (!f->by_half) {
        EACH_ROW v[r] = bounded(rintf(v[r]), f->low, f->high);
    } else {
        int first = (int)(2 * f->low);
        EACH_ROW v[r] = f->by_half[(int)floorf(bounded(v[r], f->low, f->high) * 2.f) - first];
    }
}

static inline float half(float x) { return from_half(to_half(x > 65504.f ? 65504.f : x < -65504.f ? -65504.f : x)); }

static inline void load(const float *from, int m, float *to) {
    if (m == ROWS) {
        EACH_ROW to[r] = from[r];
    } else {
        EACH_ROW to[r] = r < m ? from[r] : 0.f;
    }
}

static inline void store(float *to, int m, const float *from) {
    for (int r = 0; r < m; r++) to[r] = from[r];
}

static inline void inverses(const float *step, float *inverse) {
    EACH_ROW inverse[r] = step[r] != 0.f ? 1.f / step[r] : 0.f;
}

/* ---- the search for scales ---- */

static inline __attribute__((always_inline)) void fitted(
    const Format *f, const lanes *x, const lanes *wx, const float *w, float *step, float *gain) {
    lanes inverse, dot = {0}, norm = {0};
    inverses(step, inverse);
    for (int k = 0; k < f->group; k++) {
        lanes p;
        EACH_ROW p[r] = x[k][r] * inverse[r];
        nearest_points(f, p);
        EACH_ROW dot[r] += wx[k][r] * p[r];
        EACH_ROW norm[r] += w[k] * p[r] * p[r];
    }
    EACH_ROW step[r] = norm[r] > TINY ? dot[r] / norm[r] : 0.f;
    EACH_ROW gain[r] = step[r] * dot[r];
}

static inline __attribute__((always_inline)) void search_symmetric(
    const Format *f, const lanes *x, const float *w, const float *ratios, int64_t n_ratios, float *best) {
    lanes peak, least, wx[MOST_GROUP], step, gain;
    EACH_ROW peak[r] = x[0][r], best[r] = 0.f, least[r] = INFINITY;
    for (int k = 0; k < f->group; k++) {
        EACH_ROW peak[r] = fabsf(x[k][r]) > fabsf(peak[r]) ? x[k][r] : peak[r];
        EACH_ROW wx[k][r] = w[k] * x[k][r];
    }
    for (int64_t i = 0; i < n_ratios; i++) {
        EACH_ROW step[r] = peak[r] * ratios[i];
        fitted(f, x, (const lanes *)wx, w, step, gain);
        EACH_ROW best[r] = -gain[r] < least[r] ? step[r] : best[r];
        EACH_ROW least[r] = -gain[r] < least[r] ? -gain[r] : least[r];
    }
    fitted(f, x, (const lanes *)wx, w, best, gain);
}

static inline __attribute__((always_inline)) void group_error(
    const Format *f, const lanes *x, const float *w, const float *step, const float *base, float *error) {
    lanes inverse;
    inverses(step, inverse);
    EACH_ROW error[r] = 0.f;
    for (int k = 0; k < f->group; k++) {
        lanes p, shifted;
        EACH_ROW shifted[r] = x[k][r] - base[r];
        EACH_ROW p[r] = shifted[r] * inverse[r];
        nearest_points(f, p);
        EACH_ROW {
            float difference = p[r] * step[r] - shifted[r];
            error[r] += w[k] * difference * difference;
        }
    }
}

/* cuts: pairs of a factor on the full step, and the part of the range that is cut at the low end. */
static inline __attribute__((always_inline)) void search_affine(
    const Format *f, const lanes *x, const float *w, const float *cuts, int64_t n_cuts, float *best, float *best_low) {
    int minima_only = f->greatest_scale > 1.f;
    lanes low, high, full, sum_x = {0}, least;
    float sum_w = 0.f;
    EACH_ROW low[r] = x[0][r], high[r] = x[0][r];
    for (int k = 0; k < f->group; k++) {
        EACH_ROW low[r] = x[k][r] < low[r] ? x[k][r] : low[r];
        EACH_ROW high[r] = x[k][r] > high[r] ? x[k][r] : high[r];
        EACH_ROW sum_x[r] += w[k] * x[k][r];
        sum_w += w[k];
    }
    if (minima_only) EACH_ROW low[r] = low[r] < 0.f ? low[r] : 0.f;
    EACH_ROW full[r] = (high[r] - low[r]) / f->high;
    EACH_ROW best[r] = full[r], best_low[r] = low[r], least[r] = INFINITY;
    for (int64_t i = 0; i < n_cuts; i++) {
        lanes step, start, inverse, sum_p = {0}, sum_pp = {0}, sum_xp = {0};
        EACH_ROW step[r] = full[r] * cuts[2 * i];
        EACH_ROW start[r] = low[r] + cuts[2 * i + 1] * (high[r] - low[r]);
        EACH_ROW inverse[r] = step[r] > 0.f ? 1.f / step[r] : 0.f;
        for (int k = 0; k < f->group; k++) {
            lanes p, wp;
            EACH_ROW p[r] = (x[k][r] - start[r]) * inverse[r];
            nearest_points(f, p);
            EACH_ROW wp[r] = w[k] * p[r];
            EACH_ROW sum_p[r] += wp[r];
            EACH_ROW sum_pp[r] += wp[r] * p[r];
            EACH_ROW sum_xp[r] += wp[r] * x[k][r];
        }
        EACH_ROW {
            float det = sum_w * sum_pp[r] - sum_p[r] * sum_p[r];
            int good = det > SINGULAR * sum_w * sum_pp[r];
            float inv = good ? 1.f / det : 0.f;
            float fit = good ? (sum_w * sum_xp[r] - sum_x[r] * sum_p[r]) * inv : step[r];
            float fit_low = good ? (sum_pp[r] * sum_x[r] - sum_p[r] * sum_xp[r]) * inv : start[r];
            float alone = sum_pp[r] > TINY ? sum_xp[r] / sum_pp[r] : 0.f;
            int above = minima_only & (fit_low > 0.f);
            fit = above ? alone : fit;
            fit_low = above ? 0.f : fit_low;
            float error = fit * fit * sum_pp[r] + 2 * fit * fit_low * sum_p[r] + fit_low * fit_low * sum_w -
                          2 * fit * sum_xp[r] - 2 * fit_low * sum_x[r];
            int better = (error < least[r]) & (fit >= 0.f);
            least[r] = better ? error : least[r];
            best[r] = better ? fit : best[r];
            best_low[r] = better ? fit_low : best_low[r];
        }
    }
    if (minima_only) {
        lanes error;
        group_error(f, x, w, best, best_low, error);
        EACH_ROW {
            float moved = best_low[r] + best[r] * rintf(best[r] > 0.f ? (low[r] - best_low[r]) / best[r] : 0.f);
            moved = moved > 0.f ? moved - best[r] : moved;
            best_low[r] = error[r] < LATTICE * best[r] * best[r] * sum_w ? moved : best_low[r];
        }
    }
}

static inline __attribute__((always_inline)) void symmetric_super(
    const Format *f, const lanes *x, const float *w, const lanes *step, const float *ends, int64_t n_ends, float *d,
    lanes *scales) {
    lanes peak, least, none = {0};
    EACH_ROW peak[r] = step[0][r], least[r] = INFINITY, d[r] = 0.f;
    for (int g = 0; g < f->groups; g++) {
        EACH_ROW peak[r] = fabsf(step[g][r]) > fabsf(peak[r]) ? step[g][r] : peak[r];
        EACH_ROW scales[g][r] = 0.f;
    }
    for (int64_t i = 0; i < n_ends; i++) {
        lanes wide, inverse, total = {0}, made[MOST_GROUPS];
        EACH_ROW wide[r] = half(peak[r] / ends[i]);
        inverses(wide, inverse);
        for (int g = 0; g < f->groups; g++) {
            lanes scale, of_group, own, error;
            EACH_ROW scale[r] = bounded(rintf(step[g][r] * inverse[r]), f->least_scale, f->greatest_scale);
            EACH_ROW made[g][r] = scale[r], of_group[r] = INFINITY;
            for (int change = 0; change < 3; change++) {
                lanes trial;
                float by = change == 2 ? 1.f : (float)-change;
                EACH_ROW trial[r] = bounded(scale[r] + by, f->least_scale, f->greatest_scale);
                EACH_ROW own[r] = wide[r] * trial[r];
                group_error(f, x + g * f->group, w + g * f->group, own, none, error);
                EACH_ROW made[g][r] = error[r] < of_group[r] ? trial[r] : made[g][r];
                EACH_ROW of_group[r] = error[r] < of_group[r] ? error[r] : of_group[r];
            }
            EACH_ROW total[r] += of_group[r];
        }
        for (int g = 0; g < f->groups; g++)
            EACH_ROW scales[g][r] = (i == 0) | (total[r] < least[r]) ? made[g][r] : scales[g][r];
        EACH_ROW d[r] = (i == 0) | (total[r] < least[r]) ? wide[r] : d[r];
        EACH_ROW least[r] = total[r] < least[r] ? total[r] : least[r];
    }
}

static inline __attribute__((always_inline)) void affine_super(
    const Format *f, const lanes *x, const float *w, const lanes *step, const lanes *low, float *d, float *dmin,
    lanes *scales, lanes *minima) {
    float top = f->greatest_scale, top_min = f->greatest_minimum;
    EACH_ROW d[r] = step[0][r], dmin[r] = -low[0][r];
    for (int g = 0; g < f->groups; g++) {
        EACH_ROW d[r] = step[g][r] > d[r] ? step[g][r] : d[r];
        EACH_ROW dmin[r] = -low[g][r] > dmin[r] ? -low[g][r] : dmin[r];
    }
    EACH_ROW d[r] = half(d[r] / top), dmin[r] = half(dmin[r] / top_min);
    for (int g = 0; g < f->groups; g++) {
        lanes scale, minimum, least;
        EACH_ROW scale[r] = bounded(rintf(d[r] > 0.f ? step[g][r] / d[r] : 0.f), 0.f, top);
        EACH_ROW minimum[r] = bounded(rintf(dmin[r] > 0.f ? -low[g][r] / dmin[r] : 0.f), 0.f, top_min);
        EACH_ROW scales[g][r] = scale[r], minima[g][r] = minimum[r], least[r] = INFINITY;
        for (int pair = 0; pair < 9; pair++) {
            static const float by[3] = {0.f, -1.f, 1.f};
            lanes trial, trial_min, own, base, error;
            EACH_ROW trial[r] = bounded(scale[r] + by[pair / 3], 0.f, top);
            EACH_ROW trial_min[r] = bounded(minimum[r] + by[pair % 3], 0.f, top_min);
            EACH_ROW own[r] = d[r] * trial[r], base[r] = -dmin[r] * trial_min[r];
            group_error(f, x + g * f->group, w + g * f->group, own, base, error);
            EACH_ROW scales[g][r] = error[r] < least[r] ? trial[r] : scales[g][r];
            EACH_ROW minima[g][r] = error[r] < least[r] ? trial_min[r] : minima[g][r];
            EACH_ROW least[r] = error[r] < least[r] ? error[r] : least[r];
        }
    }
}

/* candidates: ratios of the step to the peak, or cuts; ends: the integer scales that the largest step may get. */
static inline __attribute__((always_inline)) void search(
    const Format *f, const float *x, const float *w, int64_t n_cols, int64_t n_rows, const float *candidates,
    int64_t n_candidates, const float *ends, int64_t n_ends, float *d, float *dmin, float *scales, float *minima) {
    int64_t block = f->group * f->groups;
    for (int64_t b = 0; b < n_cols / block; b++)
        for (int64_t row = 0; row < n_rows; row += ROWS) {
            int m = n_rows - row < ROWS ? (int)(n_rows - row) : ROWS;
            const float *wb = w + b * block;
            lanes values[MOST_BLOCK], step[MOST_GROUPS], low[MOST_GROUPS], db, dminb, scale[MOST_GROUPS],
                minimum[MOST_GROUPS];
            for (int k = 0; k < block; k++) load(x + (b * block + k) * n_rows + row, m, values[k]);
            for (int g = 0; g < f->groups; g++) {
                const lanes *own = (const lanes *)values + g * f->group;
                if (f->greatest_minimum > 0.f)
                    search_affine(f, own, wb + g * f->group, candidates, n_candidates, step[g], low[g]);
                else
                    search_symmetric(f, own, wb + g * f->group, candidates, n_candidates, step[g]);
            }
            if (f->groups == 1) {
                EACH_ROW db[r] = half(step[0][r]), scale[0][r] = 1.f, minimum[0][r] = 1.f;
                if (dmin) EACH_ROW dminb[r] = half(-low[0][r]);
            } else if (dmin) {
                affine_super(f, (const lanes *)values, wb, (const lanes *)step, (const lanes *)low, db, dminb, scale,
                             minimum);
            } else {
                symmetric_super(f, (const lanes *)values, wb, (const lanes *)step, ends, n_ends, db, scale);
            }
            store(d + b * n_rows + row, m, db);
            if (dmin) store(dmin + b * n_rows + row, m, dminb);
            for (int64_t g = 0; g < f->groups; g++) {
                store(scales + (b * f->groups + g) * n_rows + row, m, scale[g]);
                if (dmin) store(minima + (b * f->groups + g) * n_rows + row, m, minimum[g]);
            }
        }
}

void quantkit_search_scales(
    const Format *f, const float *x, const float *w, int64_t n_cols, int64_t n_rows, const float *candidates,
    int64_t n_candidates, const float *ends, int64_t n_ends, float *d, float *dmin, float *scales, float *minima) {
    Format fixed = *f; /* two copies of the code: the compiler knows in one that all integers are points */
    if (f->by_half) {
        search(f, x, w, n_cols, n_rows, candidates, n_candidates, ends, n_ends, d, dmin, scales, minima);
    } else {
        fixed.by_half = 0;
        search(&fixed, x, w, n_cols, n_rows, candidates, n_candidates, ends, n_ends, d, dmin, scales, minima);
    }
}

/* ---- the inner steps ---- */

void quantkit_feed_back_run(
    const Format *f, int64_t n, int64_t n_rows, const int64_t *columns, const float *feedback, int64_t stride,
    const float *weights, float *target, const float *step, const float *base, float *points, float *errors) {
    for (int64_t row = 0; row < n_rows; row += ROWS) {
        int m = n_rows - row < ROWS ? (int)(n_rows - row) : ROWS;
        lanes error[ROWS];
        for (int64_t k = 0; k < n; k++) {
            lanes value, point, own, low = {0}, inverse, weight;
            int64_t group = columns[k] / f->group;
            load(target + k * n_rows + row, m, value);
            load(step + group * n_rows + row, m, own);
            load(weights + k * n_rows + row, m, weight);
            for (int64_t j = 0; j < k; j++) {
                float by = feedback[j * stride + k];
                EACH_ROW value[r] += by * error[j][r];
            }
            if (base) {
                load(base + group * n_rows + row, m, low);
                EACH_ROW value[r] -= low[r];
            }
            inverses(own, inverse);
            EACH_ROW point[r] = value[r] * inverse[r];
            nearest_points(f, point);
            store(points + columns[k] * n_rows + row, m, point);
            EACH_ROW point[r] *= own[r];
            if (base) EACH_ROW point[r] += low[r];
            EACH_ROW error[k][r] = weight[r] - point[r];
            store(errors + k * n_rows + row, m, error[k]);
        }
    }
}

void quantkit_descend_group(
    const Format *f, int64_t n_rows, const float *own, int64_t stride, const float *pull, const float *step,
    float *points, float *error, float *moved) {
    for (int64_t row = 0; row < n_rows; row += ROWS) {
        int m = n_rows - row < ROWS ? (int)(n_rows - row) : ROWS;
        lanes steps, inverse, change[MOST_GROUP];
        load(step + row, m, steps);
        inverses(steps, inverse);
        for (int64_t k = 0; k < f->group; k++) {
            const float *h = own + k * stride;
            int64_t at = k * n_rows + row;
            lanes p, slope, better, old;
            EACH_ROW change[k][r] = 0.f;
            if (!(h[k] > 0.f)) continue;
            load(pull + at, m, slope);
            for (int64_t j = 0; j < k; j++)
                EACH_ROW slope[r] += h[j] * change[j][r];
            load(points + at, m, p);
            EACH_ROW better[r] = p[r] - slope[r] * (inverse[r] / h[k]);
            nearest_points(f, better);
            EACH_ROW better[r] = steps[r] == 0.f ? p[r] : better[r];
            EACH_ROW change[k][r] = (better[r] - p[r]) * steps[r];
            store(points + at, m, better);
            load(error + at, m, old);
            EACH_ROW old[r] += change[k][r];
            store(error + at, m, old);
            load(moved + at, m, old);
            EACH_ROW old[r] += change[k][r];
            store(moved + at, m, old);
        }
    }
}

typedef struct {
    lanes uu, vv, uv, ug, vg;
} Form;

static inline void add_product(const lanes a, const lanes b, float *sum) { EACH_ROW sum[r] += a[r] * b[r]; }

/* The sums over the columns; v is NULL for a type without minima. */
static void form_of(
    int64_t n, int64_t n_rows, int64_t row, int m, const float *u, const float *hu, const float *v, const float *hv,
    const float *pull, Form *form) {
    EACH_ROW form->uu[r] = form->vv[r] = form->uv[r] = form->ug[r] = form->vg[r] = 0.f;
    for (int64_t k = 0; k < n; k++) {
        int64_t at = k * n_rows + row;
        lanes a, b, c;
        load(u + at, m, a);
        load(hu + at, m, b);
        load(pull + at, m, c);
        add_product(a, b, form->uu);
        add_product(a, c, form->ug);
        if (!v) continue;
        load(hv + at, m, b);
        add_product(a, b, form->uv);
        load(v + at, m, a);
        add_product(a, b, form->vv);
        add_product(a, c, form->vg);
    }
}

static void take(
    const Form *q, const float *trial, const float *trial_min, const float *old, const float *old_min, float *least,
    float *best, float *best_min) {
    EACH_ROW {
        float a = trial[r] - old[r], b = trial_min[r] - old_min[r];
        float gain = 2 * (a * q->ug[r] + b * q->vg[r]) + a * a * q->uu[r] + 2 * a * b * q->uv[r] + b * b * q->vv[r];
        int better = gain < least[r];
        least[r] = better ? gain : least[r];
        best[r] = better ? trial[r] : best[r];
        best_min[r] = better ? trial_min[r] : best_min[r];
    }
}

static void inverse_determinant(const Form *q, float *inverse) {
    EACH_ROW {
        float det = q->uu[r] * q->vv[r] - q->uv[r] * q->uv[r];
        inverse[r] = det > SINGULAR * q->uu[r] * q->vv[r] ? 1.f / det : 0.f;
    }
}

static void suiting(const Form *q, const float *trial, const float *old, float *change) {
    EACH_ROW change[r] = q->vv[r] > TINY ? -(q->vg[r] + (trial[r] - old[r]) * q->uv[r]) / q->vv[r] : 0.f;
}

/* One factor: u's. `best` becomes the old value where it does not lower the error. */
static void keep_if_better(const Form *q, const float *old, float *best) {
    EACH_ROW {
        float change = best[r] - old[r];
        change = change * (2 * q->ug[r] + change * q->uu[r]) >= 0.f ? 0.f : change;
        best[r] = old[r] + change;
    }
}

static void best_halves(const Form *q, int affine, float *d, float *dmin) {
    lanes old, old_min, inverse, least = {0}, first, trial, change;
    EACH_ROW old[r] = d[r];
    if (!affine) {
        EACH_ROW d[r] = half(old[r] - (q->uu[r] > TINY ? q->ug[r] / q->uu[r] : 0.f));
        keep_if_better(q, old, d);
        return;
    }
    EACH_ROW old_min[r] = dmin[r];
    inverse_determinant(q, inverse);
    EACH_ROW first[r] = half(old[r] + (q->uv[r] * q->vg[r] - q->vv[r] * q->ug[r]) * inverse[r]);
    EACH_ROW trial[r] = half(old_min[r] + (q->uv[r] * q->ug[r] - q->uu[r] * q->vg[r]) * inverse[r]);
    take(q, first, trial, old, old_min, least, d, dmin);
    suiting(q, first, old, change);
    EACH_ROW trial[r] = half(old_min[r] + change[r]);
    take(q, first, trial, old, old_min, least, d, dmin);
    EACH_ROW first[r] = half(old[r] + (q->uu[r] > TINY ? -q->ug[r] / q->uu[r] : 0.f));
    take(q, first, old_min, old, old_min, least, d, dmin);
}

static void best_integers(const Format *f, const Form *q, int affine, float *scale, float *minimum) {
    lanes old, old_min, inverse, least = {0}, center, trial, trial_min, change;
    float low = f->least_scale, high = f->greatest_scale;
    EACH_ROW old[r] = scale[r];
    if (!affine) {
        EACH_ROW scale[r] = bounded(rintf(old[r] - (q->uu[r] > TINY ? q->ug[r] / q->uu[r] : 0.f)), low, high);
        keep_if_better(q, old, scale);
        return;
    }
    EACH_ROW old_min[r] = minimum[r];
    inverse_determinant(q, inverse);
    EACH_ROW center[r] = rintf(old[r] + (q->uv[r] * q->vg[r] - q->vv[r] * q->ug[r]) * inverse[r]);
    for (int i = 0; i < 3; i++) {
        EACH_ROW trial[r] = bounded(center[r] + (i == 2 ? 1.f : (float)-i), low, high);
        suiting(q, trial, old, change);
        EACH_ROW trial_min[r] = bounded(rintf(old_min[r] + change[r]), 0.f, f->greatest_minimum);
        take(q, trial, trial_min, old, old_min, least, scale, minimum);
    }
}

/* The scale and minimum of `n` columns: float16 numbers of a block if `halves`, otherwise integers of a group. */
void quantkit_refit(
    const Format *f, int64_t halves, int64_t n, int64_t n_rows, const float *u, const float *hu, const float *v,
    const float *hv, const float *pull, float *scale, float *minimum, float *error, float *moved) {
    for (int64_t row = 0; row < n_rows; row += ROWS) {
        int m = n_rows - row < ROWS ? (int)(n_rows - row) : ROWS;
        Form form;
        lanes best, best_min = {0}, by, by_min = {0};
        form_of(n, n_rows, row, m, u, hu, v, hv, pull, &form);
        load(scale + row, m, best);
        if (v) load(minimum + row, m, best_min);
        EACH_ROW by[r] = best[r], by_min[r] = best_min[r];
        if (halves)
            best_halves(&form, v != 0, best, best_min);
        else
            best_integers(f, &form, v != 0, best, best_min);
        EACH_ROW by[r] = best[r] - by[r], by_min[r] = best_min[r] - by_min[r];
        store(scale + row, m, best);
        if (v) store(minimum + row, m, best_min);
        for (int64_t k = 0; k < n; k++) {
            int64_t at = k * n_rows + row;
            lanes a, b, old;
            load(u + at, m, a);
            EACH_ROW a[r] *= by[r];
            if (v) {
                load(v + at, m, b);
                EACH_ROW a[r] += b[r] * by_min[r];
            }
            store(moved + at, m, a);
            load(error + at, m, old);
            EACH_ROW old[r] += a[r];
            store(error + at, m, old);
        }
    }
}
