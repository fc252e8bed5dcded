/* Types of one scale a block, without importances: one block of 32 values along the vectors.
 *
 * Every operation on a value stands alone here, and extremes do not depend on an order, so the lanes can hold a block's
 * own values. Nothing is transposed, and the quantizer is as fast as memory. */

#ifndef QUANTKIT_ALONG_H
#define QUANTKIT_ALONG_H

#include "half.h"
#include "lanes.h"

enum { PER_BLOCK = 32 / LANES };

/* The lanes in another order, by halves, quarters and so on: the steps of a reduction. JOIN_HALVES: the first half of
 * `a`, the second of `b`. */
#if LANES == 16
#define EXCHANGE_HALVES(v) SHUFFLE(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
#define JOIN_HALVES(a, b) SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 24, 25, 26, 27, 28, 29, 30, 31)
#define EXCHANGE_4(v) SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)
#define EXCHANGE_2(v) SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
#define EXCHANGE_1(v) SHUFFLE(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14)
#elif LANES == 8
#define EXCHANGE_HALVES(v) SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3)
#define JOIN_HALVES(a, b) SHUFFLE(a, b, 0, 1, 2, 3, 12, 13, 14, 15)
#define EXCHANGE_4(v) (v)
#define EXCHANGE_2(v) SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5)
#define EXCHANGE_1(v) SHUFFLE(v, v, 1, 0, 3, 2, 5, 4, 7, 6)
#else
#define EXCHANGE_HALVES(v) SHUFFLE(v, v, 2, 3, 0, 1)
#define JOIN_HALVES(a, b) SHUFFLE(a, b, 0, 1, 6, 7)
#define EXCHANGE_4(v) (v)
#define EXCHANGE_2(v) (v)
#define EXCHANGE_1(v) SHUFFLE(v, v, 1, 0, 3, 2)
#endif

/* The largest lane of each half, in all lanes of the half. */
INLINE vf largest_of_half(vf v) {
    if (LANES > 8) v = greatest(v, (vf)EXCHANGE_4((vi)v));
    if (LANES > 4) v = greatest(v, (vf)EXCHANGE_2((vi)v));
    return greatest(v, (vf)EXCHANGE_1((vi)v));
}

INLINE float largest_magnitude(const vf *x) {
    vf most = absolute(x[0]);
    for (int i = 1; i < PER_BLOCK; i++) most = greatest(most, absolute(x[i]));
    return largest_of_half(greatest(most, (vf)EXCHANGE_HALVES((vi)most)))[0];
}

typedef struct {
    float low, high;
} Range;
/* The smallest and the largest value. Of zeros of both signs it is any one. */
INLINE Range range(const vf *x) {
    vf high = x[0], low = x[0];
    for (int i = 1; i < PER_BLOCK; i++) {
        high = greatest(high, x[i]);
        low = least(low, x[i]);
    }
    /* both go on in the halves of one vector */
    high = greatest(high, (vf)EXCHANGE_HALVES((vi)high));
    low = least(low, (vf)EXCHANGE_HALVES((vi)low));
    vf both = largest_of_half((vf)JOIN_HALVES((vi)high, (vi)(-low)));
    return (Range){-both[LANES / 2], both[0]};
}

/* The bytes of a block's levels. */
INLINE void narrow(const vi *level, uint8_t *bytes) {
    for (int i = 0; i < PER_BLOCK; i++) {
        vb part = __builtin_convertvector(level[i], vb);
        memcpy(bytes + i * LANES, &part, sizeof part);
    }
}

/* The fifth bits of 32 levels: the products of 8 bytes with powers of two meet in one byte. */
INLINE uint32_t fifth_bits(const uint8_t *level) {
    uint32_t bits = 0;
    for (int i = 0; i < 4; i++) {
        uint64_t eight;
        memcpy(&eight, level + 8 * i, 8);
        bits |= (uint32_t)(((eight >> 4 & 0x0101010101010101u) * 0x0102040810204080u) >> 56) << 8 * i;
    }
    return bits;
}

/* Levels of four or five bits after the scale: as `store_levels`, for one block. */
INLINE void store_block(const vi *level, int bits, uint8_t *out) {
    if (bits == 5) {
        uint8_t bytes[32];
        narrow(level, bytes);
        uint32_t high = fifth_bits(bytes);
        memcpy(out, &high, 4);
        out += 4;
    }
    for (int i = 0; i < PER_BLOCK / 2; i++) {
        vi pair = (level[i] & 15) | (level[i + PER_BLOCK / 2] & 15) << 4;
        vb part = __builtin_convertvector(pair, vb);
        memcpy(out + i * LANES, &part, sizeof part);
    }
}

#endif
