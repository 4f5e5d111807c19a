// What a decoding step computes besides products: norms, attention over KV slots, activations.
//
// A layer is a list of calls, which one call from Python runs. All is float32. Sums are made in 16
// lanes and without contraction by the compiler, so that every CPU makes the same bits of the same
// numbers, with any number of threads: the shards of a stage must agree.
#include "steps.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "pool.h"

#pragma clang fp contract(off)

#define WIDTH 16
#define KEYS 32      // keys that a block of attention reads at a time
#define MAX_DIM 512  // of a head
#define SHARED 16384 // numbers that are worth waking other threads for

typedef float lanes __attribute__((vector_size(WIDTH * 4), aligned(4)));
typedef int32_t integers __attribute__((vector_size(WIDTH * 4), aligned(4)));
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

static inline lanes fma_of(lanes a, lanes b, lanes c) { return __builtin_elementwise_fma(a, b, c); }

static inline float sum_of(lanes value) {
  half_lanes low, high;
  memcpy(&low, &value, sizeof low);
  memcpy(&high, (const char *)&value + sizeof low, sizeof high);
  low += high;
  return ((low[0] + low[4]) + (low[2] + low[6])) + ((low[1] + low[5]) + (low[3] + low[7]));
}

static inline lanes choose(integers which, lanes yes, lanes no) {
  return (lanes)((which & (integers)yes) | (~which & (integers)no));
}

// e^x to 2 units in the last place (Cephes); below -87 it is e^-87, above 88 e^88.
static inline lanes exp_of(lanes x) {
  const lanes zero = {0};
  const lanes least = zero - 87.0f, most = zero + 88.0f;
  x = choose(x < least, least, x); // NaN stays
  x = choose(x > most, most, x);
  lanes count = fma_of(x, zero + 1.44269504f, zero + 12582912.0f) - 12582912.0f; // rounded
  lanes rest = fma_of(count, zero - 0.693359375f, x);
  rest = fma_of(count, zero + 2.12194440e-4f, rest);
  lanes power = fma_of(zero + 1.9875691500e-4f, rest, zero + 1.3981999507e-3f);
  power = fma_of(power, rest, zero + 8.3334519073e-3f);
  power = fma_of(power, rest, zero + 4.1665795894e-2f);
  power = fma_of(power, rest, zero + 1.6666665459e-1f);
  power = fma_of(power, rest, zero + 5.0000001201e-1f);
  power = fma_of(power, rest * rest, rest + 1.0f);
  integers exponent = (__builtin_convertvector(count, integers) + 127) << 23;
  return power * (lanes)exponent;
}

static int threads_for(const step *the_step, long numbers) {
  return numbers < SHARED ? 1 : (int)the_step->threads;
}

// Norms.

enum { RMS, LAYER };

typedef struct {
  const float *weight, *bias; // bias: 0 where there is none
  long size, kind, from, to;
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

// y may be x.
static void norm_one(const float *x, float *y, const float *weight, const float *bias, long size,
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

typedef struct {
  const void *arguments;
  const step *the_step;
} job;

static void norm_row(const void *argument, long row) {
  const job *the = argument;
  const norm_arguments *of = the->arguments;
  float **buffers = the->the_step->buffers;
  norm_one(buffers[of->from] + row * of->size, buffers[of->to] + row * of->size, of->weight,
           of->bias, of->size, of->kind, of->eps);
}

void skynet_norm_step(const void *arguments, const step *the_step) {
  job the = {arguments, the_step};
  long size = ((const norm_arguments *)arguments)->size;
  run_blocks(norm_row, &the, the_step->rows, threads_for(the_step, the_step->rows * size));
}

// Products; see products.c, quantised.c and integers.c.

void skynet_product(const uint16_t *weights, const float *bias, const float *x, float *y, long rows,
                    long inputs, long outputs, long y_stride, int threads);
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
} product_arguments;

void skynet_product_step(const void *arguments, const step *the_step) {
  const product_arguments *of = arguments;
  skynet_product(of->weights, of->bias, the_step->buffers[of->from],
                 the_step->buffers[of->to] + of->first, the_step->rows, of->inputs, of->outputs,
                 of->columns, (int)the_step->threads);
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

// Attention.

enum { FLOAT32, BFLOAT16, Q8 };

typedef struct {
  void *cache;   // (slots, K and then V heads, tokens, head_dim)
  float *scales; // of Q8: (slots, heads, tokens)
  const float *norm_weight, *norm_bias; // (query and K heads, head_dim); 0 where there is none
  long kind, heads, kv_heads, head_dim, slot_tokens;
  long window;            // keys that a token sees; 0: all
  long rope, rotary_dims; // rope: its number; -1 for none
  long norm_kind, from, to;
  float norm_eps, scale, cap; // cap: 0 for none
} attention_arguments;

// Multiply adjacent pairs of numbers by (cosine, sine) as complex numbers.
static void rotate(float *x, const float *factors, long dims) {
  for (long at = 0; at < dims; at += 2) {
    float real = x[at], imaginary = x[at + 1], cosine = factors[at], sine = factors[at + 1];
    x[at] = real * cosine - imaginary * sine;
    x[at + 1] = real * sine + imaginary * cosine;
  }
}

static void change_head(const attention_arguments *of, const step *the_step, long row, long head,
                        float *x) {
  long dim = of->head_dim;
  if (of->norm_weight) {
    const float *bias = of->norm_bias ? of->norm_bias + head * dim : 0;
    norm_one(x, x, of->norm_weight + head * dim, bias, dim, of->norm_kind, of->norm_eps);
  }
  if (of->rope >= 0)
    rotate(x, the_step->ropes[of->rope] + row * of->rotary_dims, of->rotary_dims);
}

static void store_head(const attention_arguments *of, long place, const float *x) {
  long dim = of->head_dim;
  if (of->kind == FLOAT32) {
    memcpy((float *)of->cache + place * dim, x, dim * sizeof(float));
  } else if (of->kind == BFLOAT16) {
    uint16_t *to = (uint16_t *)of->cache + place * dim;
    for (long at = 0; at < dim; at++) { // to the nearest, ties to even
      uint32_t bits;
      memcpy(&bits, x + at, sizeof bits);
      uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
      to[at] = (uint16_t)(x[at] == x[at] ? rounded : 0x7fc0);
    }
  } else {
    int8_t *to = (int8_t *)of->cache + place * dim;
    float largest = 0;
    for (long at = 0; at < dim; at++) {
      float size = fabsf(x[at]);
      largest = largest >= size ? largest : size; // NaN stays
      largest = size == size ? largest : size;
      if (largest != largest)
        break;
    }
    float scale = largest / 127, inverse = largest > 0 ? 127 / largest : 0;
    of->scales[place] = scale; // of NaN and infinity: not finite, and so is all read with it
    for (long at = 0; at < dim; at++)
      to[at] = isfinite(scale) ? (int8_t)lrintf(x[at] * inverse) : 1;
  }
}

// `count` keys or values from `place` on, as float32: in the cache, or converted to `room`.
static const float *read_heads(const attention_arguments *of, long place, long count, float *room) {
  long dim = of->head_dim, numbers = count * dim;
  if (of->kind == FLOAT32)
    return (const float *)of->cache + place * dim;
  if (of->kind == BFLOAT16) {
    const uint16_t *from = (const uint16_t *)of->cache + place * dim;
    for (long at = 0; at < numbers; at++) {
      uint32_t bits = (uint32_t)from[at] << 16;
      memcpy(room + at, &bits, sizeof bits);
    }
    return room;
  }
  const int8_t *from = (const int8_t *)of->cache + place * dim;
  for (long key = 0; key < count; key++) {
    float scale = of->scales[place + key];
    for (long at = 0; at < dim; at++)
      room[key * dim + at] = (float)from[key * dim + at] * scale;
  }
  return room;
}

static float dot(const float *x, const float *y, long size) {
  lanes total = {0};
  long at = 0;
  for (; at + WIDTH <= size; at += WIDTH)
    total = fma_of(load(x + at), load(y + at), total);
  if (at < size)
    total = fma_of(load_part(x + at, size - at), load_part(y + at, size - at), total);
  return sum_of(total);
}

// out = out * keep + the sum of weights[key] * values[key].
static void mix(const float *values, const float *weights, long count, long dim, float keep,
                float *out) {
  long at = 0;
  for (; at + 4 * WIDTH <= dim; at += 4 * WIDTH) {
    lanes total[4];
    for (int part = 0; part < 4; part++)
      total[part] = load(out + at + part * WIDTH) * keep;
    for (long key = 0; key < count; key++)
      for (int part = 0; part < 4; part++)
        total[part] = fma_of(load(values + key * dim + at + part * WIDTH),
                             (lanes){0} + weights[key], total[part]);
    for (int part = 0; part < 4; part++)
      save(out + at + part * WIDTH, total[part]);
  }
  for (; at + WIDTH <= dim; at += WIDTH) {
    lanes total = load(out + at) * keep;
    for (long key = 0; key < count; key++)
      total = fma_of(load(values + key * dim + at), (lanes){0} + weights[key], total);
    save(out + at, total);
  }
  for (; at < dim; at++) {
    float total = out[at] * keep;
    for (long key = 0; key < count; key++)
      total = __builtin_fmaf(values[key * dim + at], weights[key], total);
    out[at] = total;
  }
}

// What the keys so far have made of one query head: the largest score, and the sum of e^(score -
// largest) with it.
typedef struct {
  float largest, sum;
} state;

static void attend_keys(const attention_arguments *of, const float *query, const float *keys,
                        const float *values, long count, state *at, float *out) {
  float scores[KEYS];
  float largest = at->largest;
  for (long key = 0; key < count; key++) {
    float score = dot(query, keys + key * of->head_dim, of->head_dim) * of->scale;
    scores[key] = of->cap > 0 ? of->cap * tanhf(score / of->cap) : score;
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
  mix(values, scores, count, of->head_dim, keep, out);
}

// One KV head of one row, and the query heads that share it.
static void attend_block(const void *argument, long block) {
  const job *the = argument;
  const attention_arguments *of = the->arguments;
  const step *the_step = the->the_step;
  long dim = of->head_dim, group = of->heads / of->kv_heads;
  long row = block / of->kv_heads, kv_head = block % of->kv_heads;
  float *heads = the_step->buffers[of->from] + row * (of->heads + 2 * of->kv_heads) * dim;
  float *key = heads + (of->heads + kv_head) * dim, *value = key + of->kv_heads * dim;
  float *queries = heads + kv_head * group * dim;
  float *out = the_step->buffers[of->to] + (row * of->heads + kv_head * group) * dim;
  long position = the_step->positions[row];
  long key_head = the_step->slots[row] * 2 * of->kv_heads + kv_head;
  long first_key = key_head * of->slot_tokens;
  long first_value = (key_head + of->kv_heads) * of->slot_tokens;

  change_head(of, the_step, row, of->heads + kv_head, key);
  for (long head = 0; head < group; head++)
    change_head(of, the_step, row, kv_head * group + head, queries + head * dim);
  store_head(of, first_key + position, key);
  store_head(of, first_value + position, value);

  float key_room[KEYS * (of->kind == FLOAT32 ? 1 : dim)];
  float value_room[KEYS * (of->kind == FLOAT32 ? 1 : dim)];
  state states[group];
  for (long head = 0; head < group; head++)
    states[head] = (state){-INFINITY, 0};
  memset(out, 0, group * dim * sizeof(float));
  long from = of->window > 0 && position >= of->window ? position + 1 - of->window : 0;
  for (; from <= position; from += KEYS) {
    long count = position + 1 - from < KEYS ? position + 1 - from : KEYS;
    const float *keys = read_heads(of, first_key + from, count, key_room);
    const float *values = read_heads(of, first_value + from, count, value_room);
    for (long head = 0; head < group; head++)
      attend_keys(of, queries + head * dim, keys, values, count, &states[head], out + head * dim);
  }
  for (long head = 0; head < group; head++)
    for (long at = 0; at < dim; at++)
      out[head * dim + at] /= states[head].sum;
}

// Norm and rope of queries and keys, in place; K and V to their slots; attention over the slots.
void skynet_attention_step(const void *arguments, const step *the_step) {
  const attention_arguments *of = arguments;
  job the = {arguments, the_step};
  long keys = 0;
  for (long row = 0; row < the_step->rows; row++)
    keys += the_step->positions[row] + 1;
  run_blocks(attend_block, &the, the_step->rows * of->kv_heads,
             threads_for(the_step, keys * of->heads * of->head_dim));
}

// Activations.

enum { SILU, GELU, GELU_TANH, RELU, TANH, RELU_SQUARED };

typedef struct {
  long kind, columns, gated, from, to; // gated: gate and up are side by side in `from`
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

static void activate_row(const void *argument, long row) {
  const job *the = argument;
  const activation_arguments *of = the->arguments;
  const float *x = the->the_step->buffers[of->from] + row * of->columns * (of->gated ? 2 : 1);
  float *y = the->the_step->buffers[of->to] + row * of->columns;
  for (long at = 0; at < of->columns; at += WIDTH) {
    long count = of->columns - at < WIDTH ? of->columns - at : WIDTH;
    lanes value = activate(of->kind, load_part(x + at, count));
    if (of->gated)
      value *= load_part(x + of->columns + at, count);
    save_part(y + at, value, count);
  }
}

void skynet_activation_step(const void *arguments, const step *the_step) {
  job the = {arguments, the_step};
  long columns = ((const activation_arguments *)arguments)->columns;
  run_blocks(activate_row, &the, the_step->rows, threads_for(the_step, the_step->rows * columns));
}

// The sum of two buffers.

typedef struct {
  long size, from, to;
} add_arguments;

void skynet_add_step(const void *arguments, const step *the_step) {
  const add_arguments *of = arguments;
  const float *x = the_step->buffers[of->from];
  float *y = the_step->buffers[of->to];
  for (long at = 0; at < the_step->rows * of->size; at++)
    y[at] += x[at];
}

// Run a list of calls on `x`, its first buffer, into `y`, its second.
void skynet_run(const call *calls, long count, step *the_step, float *x, float *y) {
  the_step->buffers[0] = x;
  the_step->buffers[1] = y;
  for (long at = 0; at < count; at++)
    calls[at].run(calls[at].arguments, the_step);
}
