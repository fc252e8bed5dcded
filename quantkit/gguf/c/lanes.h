/* One block in every lane of a vector.
 *
 * The last bit of ggml's quantizers depends on the order of float operations along a block, so a block cannot be
 * vectorised along itself. Here lane k of a vector holds a value of block k: each lane does the operations of ggml's
 * scalar code in the same order and precision, and LANES blocks run side by side. Compile with -ffp-contract=off: a
 * fused multiply-add rounds once where ggml's code rounds twice.
 *
 * The vectors are the compiler's own (GCC and clang), so the code is the same for AVX-512, AVX2, SSE2 and NEON.
 */

#ifndef QUANTKIT_LANES_H
#define QUANTKIT_LANES_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined __SSE2__
#include <immintrin.h>
#elif defined __aarch64__
#include <arm_neon.h>
#endif

#if defined __AVX512F__
#define LANES 16
#elif defined __AVX__
#define LANES 8
#else
#define LANES 4
#endif

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint8_t vb __attribute__((vector_size(LANES)));

#define INLINE static inline __attribute__((always_inline))

/* Compilers turn these loops into one instruction each. */
#define EACH_LANE for (int k = 0; k < LANES; k++)
/* GCC keeps a loop at -O2 otherwise. */
#define UNROLLED _Pragma("GCC unroll 32")

INLINE vf splat(float x) {
    vf all;
    EACH_LANE all[k] = x;
    return all;
}
INLINE vi splat_int(int32_t x) {
    vi all;
    EACH_LANE all[k] = x;
    return all;
}
INLINE vf blend(vi mask, vf yes, vf no) {
    vf chosen;
    EACH_LANE chosen[k] = mask[k] ? yes[k] : no[k];
    return chosen;
}
INLINE vi blend_int(vi mask, vi yes, vi no) { return (mask & yes) | (~mask & no); }
/* The macros MIN and MAX of C: the second argument when one of them is NaN. With AVX-512 GCC makes two instructions of
 * the loop instead of the one that does this. */
#if defined __AVX512F__
INLINE vf least(vf a, vf b) {
    __asm__("vminps %2, %1, %0" : "=v"(a) : "v"(a), "vm"(b));
    return a;
}
INLINE vf greatest(vf a, vf b) {
    __asm__("vmaxps %2, %1, %0" : "=v"(a) : "v"(a), "vm"(b));
    return a;
}
#else
INLINE vf least(vf a, vf b) {
    EACH_LANE a[k] = a[k] < b[k] ? a[k] : b[k];
    return a;
}
INLINE vf greatest(vf a, vf b) {
    EACH_LANE a[k] = a[k] > b[k] ? a[k] : b[k];
    return a;
}
#endif
INLINE vf square_root(vf x) {
    EACH_LANE x[k] = sqrtf(x[k]);
    return x;
}
INLINE vf absolute(vf x) { return (vf)((vi)x & 0x7fffffff); }
INLINE vf floats(vi x) { return __builtin_convertvector(x, vf); }
INLINE vi truncated(vf x) { return __builtin_convertvector(x, vi); }
/* The low byte of every lane. With AVX2 GCC converts lane by lane. */
INLINE vb low_bytes(vi x) {
#if LANES == 8 && !defined __clang__
    typedef uint8_t bytes __attribute__((vector_size(32)));
    bytes packed = __builtin_shuffle(
        (bytes)x,
        (bytes){0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 16, 20, 24, 28, 16, 20, 24, 28, 16, 20, 24, 28,
                16, 20, 24, 28});
    vi words = __builtin_shuffle((vi)packed, (vi){0, 4, 0, 4, 0, 4, 0, 4});
    vb low;
    memcpy(&low, &words, sizeof low);
    return low;
#else
    return __builtin_convertvector(x, vb);
#endif
}
/* Whether any lane of a comparison is true. */
#if defined __AVX512F__
INLINE int any(vi mask) { return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0; }
#elif defined __AVX__
INLINE int any(vi mask) { return _mm256_movemask_ps((__m256)mask) != 0; }
#elif defined __SSE2__
INLINE int any(vi mask) { return _mm_movemask_ps((__m128)mask) != 0; }
#elif defined __aarch64__
INLINE int any(vi mask) { return vmaxvq_u32((uint32x4_t)mask) != 0; }
#else
INLINE int any(vi mask) {
    int32_t any = 0;
    EACH_LANE any |= mask[k];
    return any != 0;
}
#endif
/* Whether a lane with a positive `scale` has x outside low..high, or a NaN. */
#if defined __AVX512F__
INLINE int any_beyond(vf x, vf low, vf high, vf scale) {
    __mmask16 positive = _mm512_cmp_ps_mask((__m512)scale, _mm512_setzero_ps(), _CMP_GT_OQ);
    __mmask16 above = _mm512_mask_cmp_ps_mask(positive, (__m512)x, (__m512)low, _CMP_NGT_UQ);
    __mmask16 below = _mm512_mask_cmp_ps_mask(positive, (__m512)x, (__m512)high, _CMP_NLT_UQ);
    return (above | below) != 0;
}
#else
INLINE int any_beyond(vf x, vf low, vf high, vf scale) {
    return any((scale > 0.f) & ~((x > low) & (x < high)));
}
#endif

/* ggml's nearest_int: adding 1.5 * 2^23 leaves the nearest integer, ties to even, in the low bits. Beyond 2^22 it
 * returns other bits, which `nearest` reproduces and `rounded` does not. */
INLINE vi nearest(vf x) { return ((vi)(x + 12582912.f) & 0x007fffff) - 0x00400000; }
INLINE vf rounded(vf x) { return (x + 12582912.f) - 12582912.f; }
INLINE vi clamped(vi x, int low, int high) {
    EACH_LANE x[k] = x[k] < low ? low : x[k] > high ? high : x[k];
    return x;
}

/* The first and the second half of both vectors, interleaved. */
#if defined __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif
#if LANES == 16
#define FIRST_HALVES(a, b) SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define SECOND_HALVES(a, b) SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#elif LANES == 8
#define FIRST_HALVES(a, b) SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define SECOND_HALVES(a, b) SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#else
#define FIRST_HALVES(a, b) SHUFFLE(a, b, 0, 4, 1, 5)
#define SECOND_HALVES(a, b) SHUFFLE(a, b, 2, 6, 3, 7)
#endif

/* Row k of `from` interleaved with row k + LANES / 2. */
INLINE void interleave(const vi *from, vi *to) {
    for (int k = 0; k < LANES / 2; k++) {
        to[2 * k] = FIRST_HALVES(from[k], from[k + LANES / 2]);
        to[2 * k + 1] = SECOND_HALVES(from[k], from[k + LANES / 2]);
    }
}
/* Transpose a square tile, which is overwritten: log2(LANES) times interleaved. The last time goes straight to
 * `columns`, because a copy of a whole tile would be a call of memmove. */
INLINE void transpose(vi *tile, vf *columns) {
    vi other[LANES], *last = LANES == 8 ? tile : other;
    interleave(tile, other);
    if (LANES > 4) interleave(other, tile);
    if (LANES > 8) interleave(tile, other);
    for (int k = 0; k < LANES / 2; k++) {
        columns[2 * k] = (vf)FIRST_HALVES(last[k], last[k + LANES / 2]);
        columns[2 * k + 1] = (vf)SECOND_HALVES(last[k], last[k + LANES / 2]);
    }
}

/* Values at..at+n of every lane's block: value i of all of them in x[i]. n is a multiple of 16. */
static void load(const float *const *block, int64_t at, int n, vf *x) {
    for (int i = 0; i < n; i += LANES) {
        vi tile[LANES];
        EACH_LANE memcpy(&tile[k], block[k] + at + i, sizeof(vi));
        transpose(tile, x + i);
    }
}

/* The reverse, for bytes: byte[i] holds byte at+i of every lane's output. n is a multiple of 16. */
static void store(const vi *byte, int n, uint8_t *const *out, int at) {
    for (int i = 0; i < n; i += LANES) {
        vi tile[LANES];
        vf rows[LANES];
        EACH_LANE tile[k] = byte[i + k];
        transpose(tile, rows);
        EACH_LANE {
            vb narrow = low_bytes((vi)rows[k]);
            memcpy(out[k] + at + i, &narrow, sizeof narrow);
        }
    }
}

/* One byte or one 16-bit word of every lane's output. */
INLINE void store_byte(vi byte, uint8_t *const *out, int at) { EACH_LANE out[k][at] = (uint8_t)byte[k]; }
INLINE void store_word(vi word, uint8_t *const *out, int at) {
    EACH_LANE {
        uint16_t two = (uint16_t)word[k];
        memcpy(out[k] + at, &two, 2);
    }
}

/* half.h's conversions in every lane. */
INLINE vi to_halves(vf value) {
    vi sign = ((vi)value >> 16) & 0x8000, rest = (vi)value & 0x7fffffff;
    vi subnormal = (vi)((vf)rest + 0.5f) - (vi)splat(0.5f);
    vi half = (rest + 0xfff + (rest >> 13 & 1) - 0x38000000) >> 13;
    half = blend_int(rest < 0x38800000, subnormal, half);
    half = blend_int(rest >= 0x477ff000, splat_int(0x7c00), half);
    half = blend_int(rest > 0x7f800000, splat_int(0x7e00), half);
    return half | sign;
}
INLINE vf from_halves(vi half) {
    vi exponent = half >> 10 & 31, fraction = half & 1023;
    vi bits = blend_int(exponent == 31, splat_int(0x7f800000), (exponent + 112) << 23) | fraction << 13;
    bits = blend_int(exponent == 0, (vi)(floats(fraction) * 5.9604644775390625e-8f), bits);
    return (vf)(bits | (half & 0x8000) << 16);
}

/* What a kernel gets: LANES blocks of the input, the importances of their columns and their outputs. */
typedef struct {
    const float *x[LANES];
    const float *importance[LANES];
    uint8_t *out[LANES];
    vf row_squares;   /* the mean square of the row that the block belongs to */
    int clamps_first; /* search.h, wild_level */
} Batch;

typedef void Kernel(const Batch *batch);

/* Run `kernel` over all blocks of float32 (n_rows, n_columns). Idle lanes of the last batch repeat the last block.
 * `importance`: NULL or (n_columns,). `row_squares`: NULL or (n_rows,). */
static void run_batches(
    Kernel *kernel, const float *x, uint8_t *out, int64_t n_rows, int64_t n_columns, const float *importance,
    const float *row_squares, int clamps_first, int block, int block_bytes) {
    int64_t per_row = n_columns / block, count = n_rows * per_row;
    for (int64_t first = 0; first < count; first += LANES) {
        Batch batch;
        batch.row_squares = splat(0.f);
        batch.clamps_first = clamps_first;
        EACH_LANE {
            int64_t at = first + k < count ? first + k : count - 1;
            batch.x[k] = x + at * block;
            batch.out[k] = out + at * block_bytes;
            batch.importance[k] = importance ? importance + at % per_row * block : NULL;
            if (row_squares) batch.row_squares[k] = row_squares[at / per_row];
        }
        kernel(&batch);
    }
}

/* quantkit_TYPE: float32 (n_rows, n_columns) to blocks. `importance`: float32 (n_columns,) or NULL. */
#define EXPORT(type, block, block_bytes)                                                                          \
    void quantkit_##type(                                                                                         \
        const float *x, uint8_t *out, int64_t n_rows, int64_t n_columns, const float *importance,                 \
        int clamps_first) {                                                                                       \
        run_batches(type, x, out, n_rows, n_columns, importance, NULL, clamps_first, block, block_bytes);         \
    }

#endif
