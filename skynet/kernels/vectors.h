// Vectors of LANES floats: the compiler's -march decides the instructions.

#ifndef SKYNET_VECTORS_H
#define SKYNET_VECTORS_H

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

// Rows that are multiplied with weights while these are in registers.
#if LANES == 16
#define MAX_ROWS 4
#elif LANES == 8
#define MAX_ROWS 3
#else
#define MAX_ROWS 2
#endif

#define UNROLLED _Pragma("clang loop unroll(full)")

typedef float floats __attribute__((vector_size(LANES * 4), aligned(4)));

static inline floats load(const float *from) {
  floats value;
  memcpy(&value, from, sizeof value);
  return value;
}

// total + a * b, rounded once, however the compiler contracts: results have the same bits in every
// function that adds in the same order.
static inline floats add_product(floats total, floats a, floats b) {
  return __builtin_elementwise_fma(a, b, total);
}

// A number in all lanes.
static inline floats splat(float value) {
  floats all;
  for (int lane = 0; lane < LANES; lane++)
    all[lane] = value;
  return all;
}

#endif
