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

typedef float floats __attribute__((vector_size(LANES * 4), aligned(4)));

static inline floats load(const float *from) {
  floats value;
  memcpy(&value, from, sizeof value);
  return value;
}

#endif
