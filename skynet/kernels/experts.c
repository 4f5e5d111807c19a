// Mixtures of experts in a decoding step: which experts each row has, and their weighted outputs.
#include "steps.h"

#include <math.h>
#include <string.h>

#include "lanes.h"
#include "pool.h"

#define TOGETHER 8 // experts whose logits are one block of work

// The router.

enum { SOFTMAX, SIGMOID, CHOSEN };

typedef struct {
  const float *weight, *bias, *preference; // (experts, size), (experts), (experts); 0: none
  long size, experts, chosen; // chosen: experts of a row
  long score, groups, groups_per_row, best_in_group, sum_to_one;
  long from, to; // `to` (rows, 3, experts): weights, 1 for a chosen expert, what they are chosen by
  float epsilon, scale;
} router_arguments;

static inline float *routed(const float *buffer, long experts, long row) {
  return (float *)buffer + row * 3 * experts;
}

// The logits of some experts, all rows.
static void make_logits(const void *argument, long block) {
  const job *the = argument;
  const router_arguments *of = the->arguments;
  float **buffers = the->the_step->buffers;
  long first = block * TOGETHER;
  long stop = first + TOGETHER < of->experts ? first + TOGETHER : of->experts;
  for (long row = 0; row < the->the_step->rows; row++) {
    const float *x = buffers[of->from] + row * of->size;
    float *logits = routed(buffers[of->to], of->experts, row);
    for (long expert = first; expert < stop; expert++)
      logits[expert] = dot(x, of->weight + expert * of->size, of->size) +
                       (of->bias ? of->bias[expert] : 0.0f);
  }
}

// NaN is the largest number, as in PyTorch's topk.
static inline int is_above(float a, float b) { return a > b || (a != a && b == b); }

// The largest number without a mark; of equal ones the first. -1 if all have one.
static long best_of(const float *numbers, const float *marks, long size) {
  long best = -1;
  for (long at = 0; at < size; at++)
    if (marks[at] == 0 && (best < 0 || is_above(numbers[at], numbers[best])))
      best = at;
  return best;
}

// Mark the `count` largest of `size` numbers, and no others; returns their sum.
static float mark_best(const float *numbers, float *marks, long size, long count) {
  float sum = 0;
  memset(marks, 0, size * sizeof(float));
  for (long number = 0; number < count && number < size; number++) {
    long best = best_of(numbers, marks, size);
    marks[best] = 1;
    sum += numbers[best];
  }
  return sum;
}

// Minus infinity in place of the numbers outside of the best groups. `marks` is overwritten.
static void forbid_groups(const router_arguments *of, float *numbers, float *marks) {
  long size = of->experts / of->groups;
  float scores[of->groups], chosen[of->groups];
  for (long group = 0; group < of->groups; group++)
    scores[group] = mark_best(numbers + group * size, marks, size, of->best_in_group);
  mark_best(scores, chosen, of->groups, of->groups_per_row);
  for (long expert = 0; expert < of->groups * size; expert++)
    if (chosen[expert / size] == 0)
      numbers[expert] = -INFINITY;
}

// Scores in place of logits.
static void score(long kind, float *logits, long experts) {
  float largest = -INFINITY, sum;
  lanes total = {0};
  for (long at = 0; at < experts; at++)
    largest = logits[at] > largest ? logits[at] : largest;
  for (long at = 0; at < experts; at += WIDTH) {
    long count = experts - at < WIDTH ? experts - at : WIDTH;
    lanes value = load_part(logits + at, count);
    value = kind == SIGMOID ? 1.0f / (exp_of(-value) + 1.0f) : exp_of(value - largest);
    save_part(logits + at, value, count);
    total += load_part(logits + at, count);
  }
  sum = sum_of(total);
  for (long at = 0; kind == SOFTMAX && at < experts; at++)
    logits[at] /= sum;
}

// See architecture/router.py and layers/router.py.
static void choose_experts(const router_arguments *of, float *weights) {
  long experts = of->experts;
  float *marks = weights + experts, *preferred = marks + experts;
  if (of->score == CHOSEN)
    memcpy(preferred, weights, experts * sizeof(float));
  score(of->score, weights, experts);
  if (of->score != CHOSEN)
    for (long at = 0; at < experts; at++)
      preferred[at] = weights[at] + (of->preference ? of->preference[at] : 0.0f);
  if (of->groups)
    forbid_groups(of, preferred, marks);
  mark_best(preferred, marks, experts, of->chosen);
  float sum = 0;
  for (long at = 0; at < experts; at++)
    sum += marks[at] != 0 ? weights[at] : 0.0f;
  sum = of->sum_to_one ? sum + of->epsilon : 1.0f;
  for (long at = 0; at < experts; at++)
    weights[at] = weights[at] / sum * of->scale;
}

void skynet_router_step(const void *arguments, const step *the_step) {
  const router_arguments *of = arguments;
  job the = {arguments, the_step};
  run_blocks(make_logits, &the, (of->experts + TOGETHER - 1) / TOGETHER,
             threads_for(the_step, the_step->rows * of->experts * of->size));
  for (long row = 0; row < the_step->rows; row++)
    choose_experts(of, routed(the_step->buffers[of->to], of->experts, row));
}

// The experts.

typedef struct {
  const call *calls; // 0: another shard has the expert
  long count;
} expert_program;

typedef struct {
  const expert_program *programs; // of each expert: from `inputs` to `outputs`, rows of `size`
  const float *bias; // (experts, size): added to each output before it is weighed; 0: none
  long experts, size, weighs_inputs;
  long routed, inputs, outputs, from, to;
} experts_arguments;

// y += x * weight
static void add_weighted(float *y, const float *x, float weight, long size) {
  for (long at = 0; at < size; at++)
    y[at] += x[at] * weight;
}

// One expert of the rows that have it.
static void run_expert(const experts_arguments *of, const step *the_step, long expert,
                       const float *x, float *y) {
  float **buffers = the_step->buffers;
  float *inputs = buffers[of->inputs], *outputs = buffers[of->outputs];
  const float *routes = buffers[of->routed];
  long size = of->size, count = 0;
  for (long row = 0; row < the_step->rows; row++) {
    const float *weights = routed(routes, of->experts, row);
    if (weights[of->experts + expert] == 0)
      continue;
    float *to = inputs + count++ * size;
    memcpy(to, x + row * size, size * sizeof(float));
    for (long at = 0; of->weighs_inputs && at < size; at++)
      to[at] *= weights[expert];
  }
  if (!count)
    return;
  step part = *the_step;
  part.rows = count;
  skynet_run(of->programs[expert].calls, of->programs[expert].count, &part, inputs, outputs);
  for (long row = 0; row < the_step->rows; row++) {
    const float *weights = routed(routes, of->experts, row);
    if (weights[of->experts + expert] == 0)
      continue;
    add_weighted(y + row * size, outputs, of->weighs_inputs ? 1.0f : weights[expert], size);
    outputs += size;
  }
}

// The sum over each row's experts, in the order of their numbers, whatever the other rows have.
void skynet_experts_step(const void *arguments, const step *the_step) {
  const experts_arguments *of = arguments;
  float **buffers = the_step->buffers, *input = buffers[0], *output = buffers[1];
  const float *x = buffers[of->from];
  float *y = buffers[of->to];
  memset(y, 0, the_step->rows * of->size * sizeof(float));
  for (long row = 0; of->bias && row < the_step->rows; row++) {
    const float *weights = routed(buffers[of->routed], of->experts, row);
    for (long expert = 0; expert < of->experts; expert++)
      if (weights[of->experts + expert] != 0)
        add_weighted(y + row * of->size, of->bias + expert * of->size, weights[expert], of->size);
  }
  for (long expert = 0; expert < of->experts; expert++)
    if (of->programs[expert].calls)
      run_expert(of, the_step, expert, x, y);
  buffers[0] = input; // a program's input and output were the first two
  buffers[1] = output;
}

// An MLP's output times a score of its input.

typedef struct {
  const float *weight;       // (from_size)
  long from_size, to_size, from, to;
} score_arguments;

void skynet_score_step(const void *arguments, const step *the_step) {
  const score_arguments *of = arguments;
  for (long row = 0; row < the_step->rows; row++) {
    float logit = dot(the_step->buffers[of->from] + row * of->from_size, of->weight, of->from_size);
    float factor = (1.0f / (exp_of((lanes){0} - logit) + 1.0f))[0];
    float *y = the_step->buffers[of->to] + row * of->to_size;
    for (long at = 0; at < of->to_size; at++)
      y[at] *= factor;
  }
}
