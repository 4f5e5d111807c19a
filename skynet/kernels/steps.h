// The operations of a decoding step, one token of each row, as a list of calls.

#ifndef SKYNET_STEPS_H
#define SKYNET_STEPS_H

#include <stdint.h>

// A step: what all of its operations share.
typedef struct {
  long rows;
  long threads;
  const int64_t *slots;     // (rows): of the KV cache; no slot twice
  const int64_t *positions; // (rows): of the row's token in its slot
  const float *const *ropes; // of each rope of the model (rows, dims / 2, 2): cosine and sine
  float **buffers; // (rows, width) each; the first two are the input and the output of a list
} step;

// An operation, and what is fixed when the layer is loaded: weights, sizes, numbers of buffers.
typedef struct {
  void (*run)(const void *arguments, const step *the_step);
  const void *arguments;
} call;

#endif
