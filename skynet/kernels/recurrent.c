// Mixers in a decoding step whose state is of the last token alone: short convolutions and gated
// delta nets. See layers/convolution.py and layers/delta_rule.py.
#include "recurrent.h"

#include <math.h>
#include <string.h>

#include "lanes.h"
#include "pool.h"
#include "steps.h"

// Short convolutions: after * conv(before * input), of three numbers of each channel.

typedef struct {
  convolution conv;
  long from, to;
} short_convolution_arguments;

void skynet_convolution_step(const void *arguments, const step *the_step) {
  const short_convolution_arguments *of = arguments;
  long channels = of->conv.channels;
  for (long row = 0; row < the_step->rows; row++) {
    const float *x = the_step->buffers[of->from] + row * 3 * channels;
    float *y = the_step->buffers[of->to] + row * channels;
    for (long at = 0; at < channels; at++)
      y[at] = x[channels + at] *
              convolve(&of->conv, the_step->slots[row], at, x[at] * x[2 * channels + at]);
  }
}

// Gated delta nets.

typedef struct {
  convolution conv; // of queries, keys and values
  states matrices;  // (heads, key_dim, value_dim)
  const float *beta, *decay; // (heads, size): what they depend on the input by
  const float *rate, *time_bias, *norm_weight; // (heads), (heads), (value_dim)
  const int64_t *key_heads; // (heads): of each value head
  long heads, num_keys, key_dim, value_dim, size, activation;
  long input, from, to; // `from`: queries, keys, values and gates, before the convolution
  float beta_scale, length_eps, norm_eps;
} delta_arguments;

static long width_of(const delta_arguments *of) {
  return of->conv.channels + of->heads * of->value_dim;
}

// y = x / |x| * scale
static void to_length(const float *x, float *y, long size, float eps, float scale) {
  float factor = 1.0f / sqrtf(dot(x, x, size) + eps);
  for (long at = 0; at < size; at++)
    y[at] = x[at] * factor * scale;
}

// What the state, times `decay`, maps k and q to.
static void read_state(const delta_arguments *of, const float *state, float decay, const float *k,
                       const float *q, float *by_k, float *by_q) {
  for (long at = 0; at < of->value_dim; at += WIDTH) {
    long count = of->value_dim - at < WIDTH ? of->value_dim - at : WIDTH;
    lanes k_sum = {0}, q_sum = {0};
    for (long key = 0; state && key < of->key_dim; key++) {
      lanes value = load_part(state + key * of->value_dim + at, count) * decay;
      k_sum = fma_of(value, (lanes){0} + k[key], k_sum);
      q_sum = fma_of(value, (lanes){0} + q[key], q_sum);
    }
    save_part(by_k + at, k_sum, count);
    save_part(by_q + at, q_sum, count);
  }
}

// next = state * decay + k change^T
static void write_state(const delta_arguments *of, const float *state, float decay, const float *k,
                        const float *change, float *next) {
  for (long key = 0; key < of->key_dim; key++)
    for (long at = 0; at < of->value_dim; at++) {
      long place = key * of->value_dim + at;
      next[place] = (state ? state[place] * decay : 0.0f) + k[key] * change[at];
    }
}

// One value head of one row.
static void update_head(const void *argument, long block) {
  const job *the = argument;
  const delta_arguments *of = the->arguments;
  long row = block / of->heads, head = block % of->heads, slot = the->the_step->slots[row];
  long key_dim = of->key_dim, value_dim = of->value_dim, matrix = head * key_dim * value_dim;
  const float *x = the->the_step->buffers[of->input] + row * of->size;
  const float *queries = the->the_step->buffers[of->from] + row * width_of(of);
  const float *keys = queries + of->num_keys * key_dim, *values = keys + of->num_keys * key_dim;
  const float *gates = queries + of->conv.channels;
  float *out = the->the_step->buffers[of->to] + (row * of->heads + head) * value_dim;
  float q[key_dim], k[key_dim], by_q[value_dim], change[value_dim];

  to_length(queries + of->key_heads[head] * key_dim, q, key_dim, of->length_eps,
            1.0f / sqrtf((float)key_dim));
  to_length(keys + of->key_heads[head] * key_dim, k, key_dim, of->length_eps, 1.0f);
  float beta = sigmoid(dot(x, of->beta + head * of->size, of->size)) * of->beta_scale;
  float time = dot(x, of->decay + head * of->size, of->size) + of->time_bias[head];
  float decay = exp_of((lanes){0} - of->rate[head] * softplus(time))[0];
  const float *state = before(&of->matrices, slot);
  state = state ? state + matrix : 0;
  read_state(of, state, decay, k, q, change, by_q);
  for (long at = 0; at < value_dim; at++)
    change[at] = (values[head * value_dim + at] - change[at]) * beta;
  write_state(of, state, decay, k, change, after(&of->matrices, slot) + matrix);
  float both = dot(q, k, key_dim);
  for (long at = 0; at < value_dim; at++)
    out[at] = by_q[at] + both * change[at];
  skynet_norm(out, out, of->norm_weight, 0, value_dim, RMS, of->norm_eps);
  skynet_activate(SILU, gates + head * value_dim, change, value_dim);
  for (long at = 0; at < value_dim; at++)
    out[at] *= change[at];
}

void skynet_delta_step(const void *arguments, const step *the_step) {
  const delta_arguments *of = arguments;
  job the = {arguments, the_step};
  convolve_rows(&of->conv, of->activation, the_step, the_step->buffers[of->from], width_of(of));
  run_blocks(update_head, &the, the_step->rows * of->heads,
             threads_for(the_step, the_step->rows * of->matrices.size));
}
