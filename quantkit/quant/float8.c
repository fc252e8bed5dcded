/* w / scale rounded to the nearest e4m3fn, with the bytes of float8.py. Built by float8_kernel.py. */

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("vect-cost-model=unlimited")
#endif

#include <stdint.h>

typedef union {
    float value;
    uint32_t bits;
} Float;

#define LARGEST 448.f
#define STEPS 16384.f /* float32 has steps of 2^-9 from here on, as e4m3fn has below its least normal number */

static const uint32_t LEAST_NORMAL = 0x3C800000; /* 2^-6 */
/* half of a unit at bit 20, less 1 for ties, less the difference of the biases of the exponents */
static const uint32_t HALF_LESS_BIAS = (1u << 19) - 1 - (120u << 23);

static inline uint8_t nearest(float x) {
    x = x > LARGEST ? LARGEST : x;
    x = x < -LARGEST ? -LARGEST : x;
    Float from = {x}, magnitude, shifted;
    magnitude.bits = from.bits & 0x7FFFFFFF;
    shifted.value = magnitude.value + STEPS;
    const Float steps = {STEPS};
    uint32_t normal = (magnitude.bits + ((magnitude.bits >> 20) & 1) + HALF_LESS_BIAS) >> 20;
    uint32_t code = magnitude.bits < LEAST_NORMAL ? shifted.bits - steps.bits : normal;
    return (uint8_t)(code | ((from.bits >> 24) & 0x80));
}

/* The largest magnitude of each `block_columns` columns of each row of bfloat16, as its bits. */
void quantkit_bfloat16_maxima(const uint16_t *w, int64_t rows, int64_t columns, int64_t block_columns,
                              uint16_t *out) {
    for (int64_t row = 0; row < rows; row++) {
        const uint16_t *from = w + row * columns;
        for (int64_t start = 0; start < columns; start += block_columns) {
            int64_t stop = start + block_columns < columns ? start + block_columns : columns;
            uint16_t most = 0;
            for (int64_t i = start; i < stop; i++) {
                uint16_t magnitude = from[i] & 0x7FFF;
                most = magnitude > most ? magnitude : most;
            }
            *out++ = most;
        }
    }
}

/* As quantkit_float8 below, of bfloat16. */
void quantkit_float8_of_bfloat16(const uint16_t *w, const float *scales, int64_t rows, int64_t columns,
                                 int64_t block_rows, int64_t block_columns, int64_t scale_columns, uint8_t *out) {
    for (int64_t row = 0; row < rows; row++) {
        const uint16_t *from = w + row * columns;
        const float *own = scales + row / block_rows * scale_columns;
        uint8_t *to = out + row * columns;
        for (int64_t start = 0; start < columns; start += block_columns) {
            int64_t stop = start + block_columns < columns ? start + block_columns : columns;
            const float scale = own[start / block_columns];
            for (int64_t i = start; i < stop; i++) {
                Float wide = {.bits = (uint32_t)from[i] << 16};
                to[i] = nearest(wide.value / scale);
            }
        }
    }
}

/* w: rows x columns. scales: one for each `block_rows` x `block_columns` of w, `scale_columns` to a row of them. */
void quantkit_float8(const float *w, const float *scales, int64_t rows, int64_t columns, int64_t block_rows,
                     int64_t block_columns, int64_t scale_columns, uint8_t *out) {
    for (int64_t row = 0; row < rows; row++) {
        const float *from = w + row * columns, *own = scales + row / block_rows * scale_columns;
        uint8_t *to = out + row * columns;
        for (int64_t start = 0; start < columns; start += block_columns) {
            int64_t stop = start + block_columns < columns ? start + block_columns : columns;
            const float scale = own[start / block_columns];
            for (int64_t i = start; i < stop; i++) to[i] = nearest(from[i] / scale);
        }
    }
}
