// What recurrent mixers share: states in slots, and convolutions over the last tokens.

#ifndef SKYNET_RECURRENT_H
#define SKYNET_RECURRENT_H

#include <math.h>
#include <stdint.h>

#include "lanes.h"
#include "pool.h"
#include "steps.h"

#define CHANNELS 512 // that one block of work convolves

// What sequences have in their slots; a step never writes over the state that it continues.
typedef struct {
  float *values;         // (2, slots, size)
  const int64_t *places; // (slots, 2): which of the two the step reads, -1 for zeros, and writes
  long slots, size;
} states;

static inline const float *before(const states *of, long slot) {
  int64_t place = of->places[2 * slot];
  return place < 0 ? 0 : of->values + (place * of->slots + slot) * of->size;
}

static inline float *after(const states *of, long slot) {
  return of->values + (of->places[2 * slot + 1] * of->slots + slot) * of->size;
}

typedef struct {
  states windows; // (channels, kernel - 1): the last tokens' inputs, the oldest first
  const float *weight, *bias; // (channels, kernel), (channels); bias: 0 for none
  long channels, kernel;
} convolution;

// The channel's next output, for the input `x`.
static inline float convolve(const convolution *of, long slot, long channel, float x) {
  long kept = of->kernel - 1;
  const float *seen = before(&of->windows, slot), *weight = of->weight + channel * of->kernel;
  float *window = after(&of->windows, slot) + channel * kept, sum = 0;
  for (long at = 0; at < kept; at++) {
    float value = seen ? seen[channel * kept + at] : 0.0f;
    sum += value * weight[at];
    if (at)
      window[at - 1] = value;
  }
  if (kept)
    window[kept - 1] = x;
  sum += x * weight[kept];
  return of->bias ? sum + of->bias[channel] : sum;
}

typedef struct {
  const convolution *of;
  const step *the_step;
  float *x;
  long activation, stride;
} convolution_job;

static void convolve_channels(const void *argument, long block) {
  const convolution_job *the = argument;
  long blocks = (the->of->channels + CHANNELS - 1) / CHANNELS, row = block / blocks;
  long first = block % blocks * CHANNELS, left = the->of->channels - first;
  long count = left < CHANNELS ? left : CHANNELS;
  float *x = the->x + row * the->stride + first;
  for (long at = 0; at < count; at++)
    x[at] = convolve(the->of, the->the_step->slots[row], first + at, x[at]);
  skynet_activate(the->activation, x, x, count);
}

// Convolve and activate the first channels of rows that are `stride` apart, in place.
static inline void convolve_rows(const convolution *of, long activation, const step *the_step,
                                 float *x, long stride) {
  convolution_job the = {of, the_step, x, activation, stride};
  long blocks = (of->channels + CHANNELS - 1) / CHANNELS;
  run_blocks(convolve_channels, &the, the_step->rows * blocks,
             threads_for(the_step, the_step->rows * of->channels * of->kernel));
}

static inline float sigmoid(float x) { return (1.0f / (exp_of((lanes){0} - x) + 1.0f))[0]; }

static inline float softplus(float x) {
  return x > 20 ? x : log1pf(exp_of((lanes){0} + x)[0]); // the limit is PyTorch's
}

#endif
