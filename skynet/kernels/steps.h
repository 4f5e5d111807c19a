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
  const int64_t *encoder_slots, *encoder_lengths; // (rows): of encoder KV; 0: rows have none
  const float *const *ropes; // of each rope of the model (rows, dims / 2, 2): cosine and sine
  float **buffers; // (rows, width) each; the first two are the input and the output of a list
} step;

// An operation, and what is fixed when the layer is loaded: weights, sizes, numbers of buffers.
typedef struct {
  void (*run)(const void *arguments, const step *the_step);
  const void *arguments;
} call;

// Run a list of calls on `x`, its first buffer, into `y`, its second.
void skynet_run(const call *calls, long count, step *the_step, float *x, float *y);

// Parts of operations, on `size` numbers; y may be x.
enum { RMS, LAYER };
void skynet_norm(const float *x, float *y, const float *weight, const float *bias, long size,
                 long kind, float eps);
enum { SILU, GELU, GELU_TANH, RELU, TANH, RELU_SQUARED, CLAMPED };
void skynet_activate(long kind, const float *x, float *y, long size);

// What threads that share an operation are given; see pool.h.
typedef struct {
  const void *arguments;
  const step *the_step;
} job;

#define SHARED 16384 // numbers that are worth waking other threads for

static inline int threads_for(const step *the_step, long numbers) {
  return numbers < SHARED ? 1 : (int)the_step->threads;
}

#endif
