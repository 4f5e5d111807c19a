// Mamba-2 in a decoding step: the convolution and the recurrence. See layers/state_space.py.
#include "recurrent.h"

typedef struct {
  convolution conv; // of values, B and C
  states matrices;  // (heads, head_size, state_size)
  const float *decay, *time_bias, *skip; // (heads)
  const int64_t *group_of;               // (heads): whose B and C a head has
  const int64_t *in_prompt; // (slots): whether the time steps are limited
  long heads, head_size, groups, state_size, activation;
  long from, to; // `from`: gates, values, B, C, and the time steps of heads
  float least, most; // of limited time steps
} mamba_arguments;

static long width_of(const mamba_arguments *of) {
  return of->heads * of->head_size + of->conv.channels + of->heads;
}

// One head of one row.
static void advance_head(const void *argument, long block) {
  const job *the = argument;
  const mamba_arguments *of = the->arguments;
  long row = block / of->heads, head = block % of->heads, slot = the->the_step->slots[row];
  long size = of->head_size, width = of->heads * size, matrix = head * size * of->state_size;
  const float *values = the->the_step->buffers[of->from] + row * width_of(of) + width;
  const float *b = values + width + of->group_of[head] * of->state_size;
  const float *c = b + of->groups * of->state_size;
  float time = softplus(values[of->conv.channels + head] + of->time_bias[head]);
  if (of->in_prompt[slot]) {
    time = time < of->least ? of->least : time; // NaN stays
    time = time > of->most ? of->most : time;
  }
  float decay = exp_of((lanes){0} + time * of->decay[head])[0];
  const float *state = before(&of->matrices, slot);
  float *next = after(&of->matrices, slot) + matrix;
  float *y = the->the_step->buffers[of->to] + (row * of->heads + head) * size;
  for (long channel = 0; channel < size; channel++, next += of->state_size) {
    float value = values[head * size + channel];
    const float *from = state ? state + matrix + channel * of->state_size : 0;
    for (long at = 0; at < of->state_size; at++)
      next[at] = (from ? from[at] * decay : 0.0f) + value * time * b[at];
    y[channel] = dot(next, c, of->state_size) + value * of->skip[head];
  }
}

void skynet_mamba_step(const void *arguments, const step *the_step) {
  const mamba_arguments *of = arguments;
  job the = {arguments, the_step};
  float *x = the_step->buffers[of->from] + of->heads * of->head_size;
  convolve_rows(&of->conv, of->activation, the_step, x, width_of(of));
  run_blocks(advance_head, &the, the_step->rows * of->heads,
             threads_for(the_step, the_step->rows * of->matrices.size));
}
