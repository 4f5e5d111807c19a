// Vectors of 16 lanes, whatever the CPU has: sums have one order, so that every CPU makes the same
// bits of the same numbers.

#ifndef SKYNET_LANES_H
#define SKYNET_LANES_H

#include <stdint.h>
#include <string.h>

#include "exponential.h"

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

static inline float sum_of(lanes value) {
  half_lanes low, high;
  memcpy(&low, &value, sizeof low);
  memcpy(&high, (const char *)&value + sizeof low, sizeof high);
  low += high;
  return ((low[0] + low[4]) + (low[2] + low[6])) + ((low[1] + low[5]) + (low[3] + low[7]));
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
