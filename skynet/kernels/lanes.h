// Vectors of 16 lanes, whatever the CPU has: sums have one order, so that every CPU makes the same
// bits of the same numbers.

#ifndef SKYNET_LANES_H
#define SKYNET_LANES_H

#include <stdint.h>
#include <string.h>

#pragma clang fp contract(off)

#define WIDTH 16

typedef float lanes __attribute__((vector_size(WIDTH * 4), aligned(4)));
typedef int32_t integers __attribute__((vector_size(WIDTH * 4), aligned(4)));
typedef float half_lanes __attribute__((vector_size(WIDTH * 2), aligned(4)));

static inline lanes load(const float *from) {
  lanes value;
  memcpy(&value, from, sizeof value);
  return value;
}

static inline void save(float *to, lanes value) { memcpy(to, &value, sizeof value); }

// The first `count` numbers, then zeros.
static inline lanes load_part(const float *from, long count) {
  if (count == WIDTH)
    return load(from);
  lanes value = {0};
  memcpy(&value, from, count * sizeof(float));
  return value;
}

static inline void save_part(float *to, lanes value, long count) {
  if (count == WIDTH) {
    save(to, value);
    return;
  }
  memcpy(to, &value, count * sizeof(float));
}

static inline lanes fma_of(lanes a, lanes b, lanes c) { return __builtin_elementwise_fma(a, b, c); }

static inline float sum_of(lanes value) {
  half_lanes low, high;
  memcpy(&low, &value, sizeof low);
  memcpy(&high, (const char *)&value + sizeof low, sizeof high);
  low += high;
  return ((low[0] + low[4]) + (low[2] + low[6])) + ((low[1] + low[5]) + (low[3] + low[7]));
}

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

static inline float dot(const float *x, const float *y, long size) {
  lanes total = {0};
  long at = 0;
  for (; at + WIDTH <= size; at += WIDTH)
    total = fma_of(load(x + at), load(y + at), total);
  if (at < size)
    total = fma_of(load_part(x + at, size - at), load_part(y + at, size - at), total);
  return sum_of(total);
}

#endif
