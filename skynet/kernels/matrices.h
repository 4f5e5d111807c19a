// The core of matrix products: up to ROWS rows times a PANEL of columns, with the sums in registers.

#ifndef SKYNET_MATRICES_H
#define SKYNET_MATRICES_H

#include <string.h>

#include "vectors.h"

#if LANES == 16
#define ROWS 12
#define PARTS 2
#elif LANES == 8
#define ROWS 6
#define PARTS 2
#else
#define ROWS 6
#define PARTS 4
#endif
#define PANEL (PARTS * LANES)

// y (rows, PANEL) plus x (rows, inputs) times weights (inputs, PANEL), with rows so many floats
// apart. start: what each row starts with instead of y; 0 for y.
static inline __attribute__((always_inline)) void
multiply(const int rows, const float *weights, long stride, const float *start, const float *x,
         long x_stride, float *y, long y_stride, long inputs) {
  floats sums[ROWS][PARTS];
#pragma unroll
  for (int row = 0; row < rows; row++)
#pragma unroll
    for (int part = 0; part < PARTS; part++)
      sums[row][part] = load((start ? start : y + row * y_stride) + part * LANES);
  for (long input = 0; input < inputs; input++) {
    floats column[PARTS];
#pragma unroll
    for (int part = 0; part < PARTS; part++)
      column[part] = load(weights + input * stride + part * LANES);
#pragma unroll
    for (int row = 0; row < rows; row++) {
      float value = x[row * x_stride + input];
#pragma unroll
      for (int part = 0; part < PARTS; part++)
        sums[row][part] += column[part] * value;
    }
  }
#pragma unroll
  for (int row = 0; row < rows; row++)
#pragma unroll
    for (int part = 0; part < PARTS; part++)
      memcpy(y + row * y_stride + part * LANES, &sums[row][part], sizeof(floats));
}

#define CASE(COUNT)                                                                                \
  case COUNT:                                                                                      \
    multiply(COUNT, weights, stride, start, x, x_stride, y, y_stride, inputs);                     \
    break;

// For 1 to ROWS rows.
static void multiply_rows(long rows, const float *weights, long stride, const float *start,
                          const float *x, long x_stride, float *y, long y_stride, long inputs) {
  switch (rows) {
    CASE(1)
    CASE(2)
    CASE(3)
    CASE(4)
    CASE(5)
    CASE(6)
#if ROWS > 6
    CASE(7)
    CASE(8)
    CASE(9)
    CASE(10)
    CASE(11)
    CASE(12)
#endif
  }
}
#undef CASE

#endif
