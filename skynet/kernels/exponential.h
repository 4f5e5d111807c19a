// Vectors of 16 floats on every CPU, and their exponential. What follows in a file that includes this
// is compiled without contraction, so that every CPU makes the same bits.

#ifndef SKYNET_EXPONENTIAL_H
#define SKYNET_EXPONENTIAL_H

#include <stdint.h>

#pragma clang fp contract(off)

#define WIDTH 16

typedef float lanes __attribute__((vector_size(WIDTH * 4), aligned(4)));
typedef int32_t integers __attribute__((vector_size(WIDTH * 4), aligned(4)));

static inline lanes fma_of(lanes a, lanes b, lanes c) { return __builtin_elementwise_fma(a, b, c); }

static inline lanes choose(integers which, lanes yes, lanes no) {
  return (lanes)((which & (integers)yes) | (~which & (integers)no));
}

// e^x to 2 units in the last place (Cephes); below -87 it is e^-87, above 88 e^88.
static inline lanes exp_of(lanes x) {
  const lanes zero = {0};
  const lanes least = zero - 87.0f, most = zero + 88.0f;
  x = choose(x < least, least, x); // NaN stays
  x = choose(x > most, most, x);
  lanes count = fma_of(x, zero + 1.44269504f, zero + 12582912.0f) - 12582912.0f; // rounded
  lanes rest = fma_of(count, zero - 0.693359375f, x);
  rest = fma_of(count, zero + 2.12194440e-4f, rest);
  lanes power = fma_of(zero + 1.9875691500e-4f, rest, zero + 1.3981999507e-3f);
  power = fma_of(power, rest, zero + 8.3334519073e-3f);
  power = fma_of(power, rest, zero + 4.1665795894e-2f);
  power = fma_of(power, rest, zero + 1.6666665459e-1f);
  power = fma_of(power, rest, zero + 5.0000001201e-1f);
  power = fma_of(power, rest * rest, rest + 1.0f);
  integers exponent = (__builtin_convertvector(count, integers) + 127) << 23;
  return power * (lanes)exponent;
}

#endif
