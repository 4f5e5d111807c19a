// Attention of one query over keys and values of a slot.

#ifndef SKYNET_ATTENTION_H
#define SKYNET_ATTENTION_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "lanes.h"

#define KEYS 32 // that are read at a time

// What slots hold: vectors of numbers, or of codes with a scale for each vector.
enum { FLOAT32, BFLOAT16, Q8 };

// Write a vector to number `at` and the following ones of a cache.
static inline void store_vector(long kind, void *cache, long at, float *scale, const float *x,
                                long size) {
  if (kind == FLOAT32) {
    memcpy((float *)cache + at, x, size * sizeof(float));
  } else if (kind == BFLOAT16) {
    uint16_t *to = (uint16_t *)cache + at;
    for (long i = 0; i < size; i++) { // to the nearest, ties to even
      uint32_t bits;
      memcpy(&bits, x + i, sizeof bits);
      uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
      to[i] = (uint16_t)(x[i] == x[i] ? rounded : 0x7fc0);
    }
  } else {
    int8_t *to = (int8_t *)cache + at;
    float largest = 0;
    for (long i = 0; i < size; i++) {
      float number = fabsf(x[i]);
      largest = largest >= number ? largest : number; // NaN stays
      largest = number == number ? largest : number;
      if (largest != largest)
        break;
    }
    float inverse = largest > 0 ? 127 / largest : 0;
    *scale = largest / 127; // of NaN and infinity: not finite, and so is all read with it
    for (long i = 0; i < size; i++)
      to[i] = isfinite(*scale) ? (int8_t)lrintf(x[i] * inverse) : 1;
  }
}

// Read a vector of such numbers or codes; scale: of codes.
static inline void read_vector(long kind, const void *cache, long at, float scale, float *to,
                               long size) {
  if (kind == FLOAT32) {
    memcpy(to, (const float *)cache + at, size * sizeof(float));
  } else if (kind == BFLOAT16) {
    const uint16_t *from = (const uint16_t *)cache + at;
    for (long i = 0; i < size; i++) {
      uint32_t bits = (uint32_t)from[i] << 16;
      memcpy(to + i, &bits, sizeof bits);
    }
  } else {
    const int8_t *from = (const int8_t *)cache + at;
    for (long i = 0; i < size; i++)
      to[i] = (float)from[i] * scale;
  }
}

// Multiply adjacent pairs of numbers by (cosine, sine) as complex numbers.
static inline void rotate(float *x, const float *factors, long dims) {
  for (long at = 0; at < dims; at += 2) {
    float real = x[at], imaginary = x[at + 1], cosine = factors[at], sine = factors[at + 1];
    x[at] = real * cosine - imaginary * sine;
    x[at + 1] = real * sine + imaginary * cosine;
  }
}

// out = out * keep + the sum of weights[key] * values[key], whose rows are `stride` apart.
static inline void mix(const float *values, long stride, const float *weights, long count, long dim,
                float keep, float *out) {
  long at = 0;
  for (; at + 4 * WIDTH <= dim; at += 4 * WIDTH) {
    lanes total[4];
    for (int part = 0; part < 4; part++)
      total[part] = load(out + at + part * WIDTH) * keep;
    for (long key = 0; key < count; key++)
      for (int part = 0; part < 4; part++)
        total[part] = fma_of(load(values + key * stride + at + part * WIDTH),
                             (lanes){0} + weights[key], total[part]);
    for (int part = 0; part < 4; part++)
      save(out + at + part * WIDTH, total[part]);
  }
  for (; at + WIDTH <= dim; at += WIDTH) {
    lanes total = load(out + at) * keep;
    for (long key = 0; key < count; key++)
      total = fma_of(load(values + key * stride + at), (lanes){0} + weights[key], total);
    save(out + at, total);
  }
  for (; at < dim; at++) {
    float total = out[at] * keep;
    for (long key = 0; key < count; key++)
      total = __builtin_fmaf(values[key * stride + at], weights[key], total);
    out[at] = total;
  }
}

// Numbers of a key and of a value, from the start of one to that of the next.
typedef struct {
  long key_dim, value_dim, stride;
  float scale, cap; // of scores; cap: 0 for none
} head_sizes;

// What the keys so far have made of one query head: the largest score, and the sum of e^(score -
// largest) with it.
typedef struct {
  float largest, sum;
} state;

// bias: of the first key, with those of the next ones before it; 0: none.
static inline void attend_keys(const head_sizes *of, const float *query, const float *bias,
                        const float *keys, const float *values, long count, state *at, float *out) {
  float scores[KEYS];
  float largest = at->largest;
  for (long key = 0; key < count; key++) {
    float score = dot(query, keys + key * of->stride, of->key_dim) * of->scale;
    scores[key] = of->cap > 0 ? of->cap * tanhf(score / of->cap) : score;
    scores[key] += bias ? bias[-key] : 0.0f;
    largest = scores[key] > largest ? scores[key] : largest;
  }
  for (long key = count; key < KEYS; key++)
    scores[key] = -INFINITY;
  lanes total = {0};
  for (long key = 0; key < count; key += WIDTH) {
    lanes share = exp_of(load(scores + key) - largest);
    if (count - key < WIDTH)
      share = load_part((const float *)&share, count - key);
    save(scores + key, share);
    total += share;
  }
  // Not e^-87, and not NaN, before the first keys.
  float keep = at->sum > 0 ? exp_of((lanes){0} + (at->largest - largest))[0] : 0.0f;
  keep = at->sum == at->sum ? keep : at->sum;
  at->sum = at->sum * keep + sum_of(total);
  at->largest = largest;
  mix(values, of->stride, scores, count, of->value_dim, keep, out);
}

// The first key that the token at `position` sees: of `window` keys, or of its chunk; 0: of all.
static inline long first_key(long position, long window, long chunk) {
  if (chunk > 0)
    return position / chunk * chunk;
  return window > 0 && position >= window ? position + 1 - window : 0;
}

#endif
