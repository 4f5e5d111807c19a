// Attention of a decoding step: heads over the keys and values of their slots.
#include "attention.h"

#include "pool.h"
#include "steps.h"

typedef struct {
  void *cache;   // (slots, K and then V heads, tokens, head_dim)
  float *scales; // of Q8: (slots, heads, tokens)
  // 0 where there is none: (query and K heads, head_dim) of norms, (heads) scores of keys without a
  // value, (heads, slot_tokens) added to scores by the distance from query to key, (slot_tokens)
  // that queries are multiplied by
  const float *norm_weight, *norm_bias, *sinks, *bias, *query_factors;
  long kind, heads, kv_heads, head_dim, slot_tokens;
  long window, chunk;     // keys that a token sees, or tokens of a chunk that it is in; 0: all
  long rope, rotary_dims; // rope: its number; -1 for none
  long gated;             // the heads' gates are beside queries, keys and values
  long crossed;           // queries alone, over all of the encoder KV of a row
  long norm_kind, from, to;
  float norm_eps, scale, cap, clip; // cap, clip: 0 for none
} attention_arguments;

// NaN stays.
static void clip(float *x, float limit, long size) {
  for (long at = 0; at < size; at++)
    x[at] = x[at] > limit ? limit : x[at] < -limit ? -limit : x[at];
}

// `head` of the query and K heads, as it is multiplied with others.
static void change_head(const attention_arguments *of, const step *the_step, long row, long head,
                        float *x) {
  long dim = of->head_dim;
  if (of->clip > 0)
    clip(x, of->clip, dim);
  if (of->norm_weight) {
    const float *bias = of->norm_bias ? of->norm_bias + head * dim : 0;
    skynet_norm(x, x, of->norm_weight + head * dim, bias, dim, of->norm_kind, of->norm_eps);
  }
  if (of->rope >= 0)
    rotate(x, the_step->ropes[of->rope] + row * of->rotary_dims, of->rotary_dims);
  if (of->query_factors && head < of->heads)
    for (long at = 0; at < dim; at++)
      x[at] *= of->query_factors[the_step->positions[row]];
}

static void store_head(const attention_arguments *of, long place, const float *x) {
  float *scale = of->scales ? of->scales + place : 0;
  store_vector(of->kind, of->cache, place * of->head_dim, scale, x, of->head_dim);
}

// `count` keys or values from `place` on, as float32: in the cache, or converted to `room`.
static const float *read_heads(const attention_arguments *of, long place, long count, float *room) {
  long dim = of->head_dim;
  if (of->kind == FLOAT32)
    return (const float *)of->cache + place * dim;
  for (long key = 0; key < count; key++)
    read_vector(of->kind, of->cache, (place + key) * dim, of->scales ? of->scales[place + key] : 0,
                room + key * dim, dim);
  return room;
}

// x *= sigmoid(gate)
static void multiply_by_sigmoid(float *x, const float *gate, long size) {
  for (long at = 0; at < size; at += WIDTH) {
    long count = size - at < WIDTH ? size - at : WIDTH;
    lanes factor = 1.0f / (exp_of(-load_part(gate + at, count)) + 1.0f);
    save_part(x + at, load_part(x + at, count) * factor, count);
  }
}

// One KV head of one row, and the query heads that share it.
static void attend_block(const void *argument, long block) {
  const job *the = argument;
  const attention_arguments *of = the->arguments;
  const step *the_step = the->the_step;
  long dim = of->head_dim, row = block / of->kv_heads, kv_head = block % of->kv_heads;
  long group = of->heads / of->kv_heads, first = kv_head * group;
  long width = of->heads * (of->gated ? 2 : 1) + (of->crossed ? 0 : 2 * of->kv_heads);
  float *heads = the_step->buffers[of->from] + row * width * dim;
  float *key = heads + (of->heads + kv_head) * dim, *value = key + of->kv_heads * dim;
  float *queries = heads + first * dim;
  const float *gates = queries + (of->heads + 2 * of->kv_heads) * dim;
  float *out = the_step->buffers[of->to] + (row * of->heads + first) * dim;
  long position = of->crossed ? the_step->encoder_lengths[row] - 1 : the_step->positions[row];
  long slot = of->crossed ? the_step->encoder_slots[row] : the_step->slots[row];
  long key_head = slot * 2 * of->kv_heads + kv_head;
  long key_place = key_head * of->slot_tokens;
  long value_place = (key_head + of->kv_heads) * of->slot_tokens;

  for (long head = 0; head < group; head++)
    change_head(of, the_step, row, first + head, queries + head * dim);
  if (!of->crossed) {
    change_head(of, the_step, row, of->heads + kv_head, key);
    if (of->clip > 0)
      clip(value, of->clip, dim);
    store_head(of, key_place + position, key);
    store_head(of, value_place + position, value);
  }

  float key_room[KEYS * (of->kind == FLOAT32 ? 1 : dim)];
  float value_room[KEYS * (of->kind == FLOAT32 ? 1 : dim)];
  state states[group];
  head_sizes sizes = {dim, dim, dim, of->scale, of->cap};
  for (long head = 0; head < group; head++)
    states[head] = of->sinks ? (state){of->sinks[first + head], 1}
                             : (state){-INFINITY, 0};
  memset(out, 0, group * dim * sizeof(float));
  long from = first_key(position, of->window, of->chunk);
  for (; from <= position; from += KEYS) {
    long count = position + 1 - from < KEYS ? position + 1 - from : KEYS;
    const float *keys = read_heads(of, key_place + from, count, key_room);
    const float *values = read_heads(of, value_place + from, count, value_room);
    for (long head = 0; head < group; head++) {
      const float *bias =
          of->bias ? of->bias + (first + head) * of->slot_tokens + position - from : 0;
      attend_keys(&sizes, queries + head * dim, bias, keys, values, count, &states[head],
                  out + head * dim);
    }
  }
  for (long head = 0; head < group; head++)
    for (long at = 0; at < dim; at++)
      out[head * dim + at] /= states[head].sum;
  if (of->gated)
    multiply_by_sigmoid(out, gates, group * dim);
}

// Changes of queries and keys, in place; K and V to their slots; attention over the slots.
void skynet_attention_step(const void *arguments, const step *the_step) {
  const attention_arguments *of = arguments;
  job the = {arguments, the_step};
  long keys = 0;
  for (long row = 0; row < the_step->rows; row++)
    keys += of->crossed ? the_step->encoder_lengths[row] : the_step->positions[row] + 1;
  run_blocks(attend_block, &the, the_step->rows * of->kv_heads,
             threads_for(the_step, keys * of->heads * of->head_dim));
}
