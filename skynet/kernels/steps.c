// The parts of a decoding step that most layers have: norms, products, activations.
//
// A layer is a list of calls, which one call from Python runs. All is float32. Sums are made in 16
// lanes and without contraction by the compiler, so that every CPU makes the same bits of the same
// numbers, with any number of threads: the shards of a stage must agree.
#include "steps.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "lanes.h" // without contraction from here on
#include "pool.h"

// Norms.

typedef struct {
  const float *weight, *bias; // bias: 0 where there is none
  long size, stride, kind, from, to; // stride: from a row of `from` to the next
  float eps;
} norm_arguments;

static float sum_squares(const float *x, float minus, long size) {
  lanes total = {0}, mean = total + minus;
  long at = 0;
  for (; at + WIDTH <= size; at += WIDTH) {
    lanes value = load(x + at) - mean;
    total = fma_of(value, value, total);
  }
  if (at < size) {
    lanes value = load_part(x + at, size - at) - load_part((const float *)&mean, size - at);
    total = fma_of(value, value, total);
  }
  return sum_of(total);
}

static float mean_of(const float *x, long size) {
  lanes total = {0};
  long at = 0;
  for (; at + WIDTH <= size; at += WIDTH)
    total += load(x + at);
  if (at < size)
    total += load_part(x + at, size - at);
  return sum_of(total) / (float)size;
}

void skynet_norm(const float *x, float *y, const float *weight, const float *bias, long size,
                 long kind, float eps) {
  float mean = kind == LAYER ? mean_of(x, size) : 0.0f;
  float scale = 1.0f / sqrtf(sum_squares(x, mean, size) / (float)size + eps);
  lanes none = {0};
  for (long at = 0; at < size; at += WIDTH) {
    long count = size - at < WIDTH ? size - at : WIDTH;
    lanes value = (load_part(x + at, count) - mean) * scale * load_part(weight + at, count);
    value += bias ? load_part(bias + at, count) : none;
    save_part(y + at, value, count);
  }
}

static void norm_row(const void *argument, long row) {
  const job *the = argument;
  const norm_arguments *of = the->arguments;
  float **buffers = the->the_step->buffers;
  skynet_norm(buffers[of->from] + row * of->stride, buffers[of->to] + row * of->size, of->weight,
              of->bias, of->size, of->kind, of->eps);
}

void skynet_norm_step(const void *arguments, const step *the_step) {
  job the = {arguments, the_step};
  long size = ((const norm_arguments *)arguments)->size;
  run_blocks(norm_row, &the, the_step->rows, threads_for(the_step, the_step->rows * size));
}

// Products; see products.c, quantised.c and integers.c.

void skynet_product(const uint8_t *weights, const float *bias, const float *x, float *y, long rows,
                    long inputs, long outputs, long y_stride, int number, int threads);
typedef int quantised_product(const uint8_t *weights, const float *bias, const float *x, float *y,
                              long rows, long inputs, long outputs, long y_stride, long group,
                              int is_q4, int scale_bytes, int threads);
quantised_product skynet_quantised_product, skynet_integer_product;

typedef struct {
  const void *weights;
  const float *bias;
  long inputs, outputs, from, to;
  long first, columns; // the first column of the target's that the product fills, and how many it has
  long group, is_q4, scale_bytes; // of quantised weights
  long number;                    // of others: which kind of number; see products.c
} product_arguments;

void skynet_product_step(const void *arguments, const step *the_step) {
  const product_arguments *of = arguments;
  skynet_product(of->weights, of->bias, the_step->buffers[of->from],
                 the_step->buffers[of->to] + of->first, the_step->rows, of->inputs, of->outputs,
                 of->columns, (int)of->number, (int)the_step->threads);
}

static void multiply_quantised(quantised_product *product, const product_arguments *of,
                               const step *the_step) {
  float *y = the_step->buffers[of->to] + of->first;
  if (product(of->weights, of->bias, the_step->buffers[of->from], y, the_step->rows, of->inputs,
              of->outputs, of->columns, of->group, (int)of->is_q4, (int)of->scale_bytes,
              (int)the_step->threads))
    for (long row = 0; row < the_step->rows; row++) // no memory: the step fails by its check
      for (long at = 0; at < of->outputs; at++)
        y[row * of->columns + at] = NAN;
}

void skynet_quantised_step(const void *arguments, const step *the_step) {
  multiply_quantised(skynet_quantised_product, arguments, the_step);
}

void skynet_integer_step(const void *arguments, const step *the_step) {
  multiply_quantised(skynet_integer_product, arguments, the_step);
}

// Activations.

typedef struct {
  long kind, columns, gated, from, to; // gated: gate and up are side by side in `from`
  float limit, alpha;                  // of CLAMPED; see architecture/gate.py
} activation_arguments;

static inline lanes activate(long kind, lanes x) {
  if (kind == SILU)
    return x / (exp_of(-x) + 1.0f);
  if (kind == GELU_TANH) { // (1 + tanh(u)) / 2 is 1 / (1 + e^-2u)
    lanes inner = x * 1.5957691216f * fma_of(x * x, (lanes){0} + 0.044715f, (lanes){0} + 1.0f);
    return x / (exp_of(-inner) + 1.0f);
  }
  for (int lane = 0; lane < WIDTH; lane++)
    if (kind == GELU)
      x[lane] = 0.5f * x[lane] * (1.0f + erff(x[lane] * 0.70710678f));
    else if (kind == TANH)
      x[lane] = tanhf(x[lane]);
    else
      x[lane] = x[lane] < 0 ? 0 : x[lane];
  return kind == RELU_SQUARED ? x * x : x;
}

void skynet_activate(long kind, const float *x, float *y, long size) {
  for (long at = 0; at < size; at += WIDTH) {
    long count = size - at < WIDTH ? size - at : WIDTH;
    save_part(y + at, activate(kind, load_part(x + at, count)), count);
  }
}

static inline lanes clamped_gate(const activation_arguments *of, lanes gate, lanes up) {
  lanes most = (lanes){0} + of->limit;
  gate = choose(gate > most, most, gate); // NaN stays
  up = choose(up > most, most, choose(up < -most, -most, up));
  return (up + 1.0f) * gate * (1.0f / (exp_of(-(gate * of->alpha)) + 1.0f));
}

static void activate_row(const void *argument, long row) {
  const job *the = argument;
  const activation_arguments *of = the->arguments;
  const float *x = the->the_step->buffers[of->from] + row * of->columns * (of->gated ? 2 : 1);
  float *y = the->the_step->buffers[of->to] + row * of->columns;
  for (long at = 0; at < of->columns; at += WIDTH) {
    long count = of->columns - at < WIDTH ? of->columns - at : WIDTH;
    lanes value = load_part(x + at, count);
    if (of->kind == CLAMPED)
      value = clamped_gate(of, value, load_part(x + of->columns + at, count));
    else
      value = activate(of->kind, value);
    if (of->gated && of->kind != CLAMPED)
      value *= load_part(x + of->columns + at, count);
    save_part(y + at, value, count);
  }
}

void skynet_activation_step(const void *arguments, const step *the_step) {
  job the = {arguments, the_step};
  long columns = ((const activation_arguments *)arguments)->columns;
  run_blocks(activate_row, &the, the_step->rows, threads_for(the_step, the_step->rows * columns));
}

// Plus a multiple of another buffer, and of a bias.

typedef struct {
  const float *bias;   // (size); 0: none
  long size, from, to; // from: -1 for the bias alone
  float scale;
} add_arguments;

void skynet_add_step(const void *arguments, const step *the_step) {
  const add_arguments *of = arguments;
  float *y = the_step->buffers[of->to];
  if (of->from >= 0) {
    const float *x = the_step->buffers[of->from];
    for (long at = 0; at < the_step->rows * of->size; at++)
      y[at] = __builtin_fmaf(x[at], of->scale, y[at]);
  }
  for (long row = 0; of->bias && row < the_step->rows; row++)
    for (long at = 0; at < of->size; at++)
      y[row * of->size + at] = __builtin_fmaf(of->bias[at], of->scale, y[row * of->size + at]);
}

// Some columns of a buffer times a factor.

typedef struct {
  long first, size, columns, to; // columns: of a row of `to`
  float factor;
} scale_arguments;

void skynet_scale_step(const void *arguments, const step *the_step) {
  const scale_arguments *of = arguments;
  for (long row = 0; row < the_step->rows; row++) {
    float *y = the_step->buffers[of->to] + row * of->columns + of->first;
    for (long at = 0; at < of->size; at++)
      y[at] *= of->factor;
  }
}

void skynet_run(const call *calls, long count, step *the_step, float *x, float *y) {
  the_step->buffers[0] = x;
  the_step->buffers[1] = y;
  for (long at = 0; at < count; at++)
    calls[at].run(calls[at].arguments, the_step);
}

// Norms and activations of prompts, without a list of calls.

typedef struct {
  const float *x, *weight; // weight: (vectors, size)
  float *y;
  long vectors, size, x_stride;
  float eps;
} rows_to_norm;

static void norm_vectors(const void *argument, long row) {
  const rows_to_norm *the = argument;
  for (long at = 0; at < the->vectors; at++)
    skynet_norm(the->x + row * the->x_stride + at * the->size,
                the->y + (row * the->vectors + at) * the->size, the->weight + at * the->size, 0,
                the->size, RMS, the->eps);
}

// RMS norms of x (rows, vectors, size), whose rows are `x_stride` floats apart.
void skynet_rms_norm(const float *x, const float *weight, float *y, long rows, long vectors,
                     long size, long x_stride, float eps, int threads) {
  rows_to_norm the = {x, weight, y, vectors, size, x_stride, eps};
  run_blocks(norm_vectors, &the, rows, rows * vectors * size < SHARED ? 1 : threads);
}

// act(gate) * up of `x` (rows, 2 x columns), or act(x) of (rows, columns), to (rows, columns).
void skynet_activate_rows(const float *x, float *y, long rows, long columns, long kind, long gated,
                          int threads) {
  float *buffers[] = {(float *)x, y};
  step the_step = {.rows = rows, .threads = threads, .buffers = buffers};
  activation_arguments of = {.kind = kind, .columns = columns, .gated = gated, .from = 0, .to = 1};
  skynet_activation_step(&of, &the_step);
}
