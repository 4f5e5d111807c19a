// RMS norms of numbers that shards divide: each shard's squares are summed between two operations.
#include <math.h>

#include "lanes.h"
#include "steps.h"

// A row of `x` begins with segments of `size` numbers. Those of a group are normed together.
typedef struct {
  const float *weight;     // (segments, size)
  const float *shares;     // (groups): what a group's sum of squares is multiplied by
  const int64_t *group_of; // (segments)
  long segments, size, stride, groups;
  long x, sums; // sums (rows, groups)
  float eps;
} divided_norm_arguments;

void skynet_squares_step(const void *arguments, const step *the_step) {
  const divided_norm_arguments *of = arguments;
  for (long row = 0; row < the_step->rows; row++) {
    const float *x = the_step->buffers[of->x] + row * of->stride;
    float *sums = the_step->buffers[of->sums] + row * of->groups;
    memset(sums, 0, of->groups * sizeof(float));
    for (long segment = 0; segment < of->segments; segment++, x += of->size)
      sums[of->group_of[segment]] += dot(x, x, of->size);
    for (long group = 0; group < of->groups; group++)
      sums[group] *= of->shares[group];
  }
}

void skynet_divided_norm_step(const void *arguments, const step *the_step) {
  const divided_norm_arguments *of = arguments;
  for (long row = 0; row < the_step->rows; row++) {
    float *x = the_step->buffers[of->x] + row * of->stride;
    const float *sums = the_step->buffers[of->sums] + row * of->groups, *weight = of->weight;
    for (long segment = 0; segment < of->segments; segment++) {
      float scale = 1.0f / sqrtf(sums[of->group_of[segment]] + of->eps);
      for (long at = 0; at < of->size; at++)
        x[at] = x[at] * scale * weight[at];
      x += of->size;
      weight += of->size;
    }
  }
}

// Rows of `to` times the SiLU of the first numbers of rows of `from`.

typedef struct {
  long size, stride, from, to;
} gate_arguments;

void skynet_gate_step(const void *arguments, const step *the_step) {
  const gate_arguments *of = arguments;
  for (long row = 0; row < the_step->rows; row++) {
    const float *gate = the_step->buffers[of->from] + row * of->stride;
    float *y = the_step->buffers[of->to] + row * of->size;
    for (long at = 0; at < of->size; at += WIDTH) {
      long count = of->size - at < WIDTH ? of->size - at : WIDTH;
      lanes value = load_part(gate + at, count);
      value = load_part(y + at, count) * (value / (exp_of(-value) + 1.0f));
      save_part(y + at, value, count);
    }
  }
}
