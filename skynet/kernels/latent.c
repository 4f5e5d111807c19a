// Latent attention of a decoding step: heads over the latents of their slots. Queries are multiplied
// by the key part of `kv_b`, and the mix of latents by its value part; see
// layers/latent_attention.py.
#include "attention.h"
#include "pool.h"
#include "steps.h"

#define HEADS 4 // that a block of work reads the latents for

typedef struct {
  void *cache;   // (slots, slot_tokens, rank + rotary): a latent, and a rotated key
  float *scales; // of Q8: (slots, slot_tokens, 2)
  const float *norm_weight, *kv_b; // (rank), (heads, key + value, rank)
  const float *query_factors;      // (slot_tokens): by position; 0: none
  long kind, heads, rank, rotary, key, value, slot_tokens;
  long window, chunk, rope;       // as in attention.c
  long columns, queries, from, to; // `from` (rows, columns): its last ones are latent and key
  float norm_eps, scale;
} latent_arguments;

static long width_of(const latent_arguments *of) { return of->rank + of->rotary; }

static void store_latent(const latent_arguments *of, const step *the_step, long row) {
  long place = the_step->slots[row] * of->slot_tokens + the_step->positions[row];
  float *x = the_step->buffers[of->from] + (row + 1) * of->columns - width_of(of);
  float *scales = of->scales ? of->scales + 2 * place : 0;
  skynet_norm(x, x, of->norm_weight, 0, of->rank, RMS, of->norm_eps);
  if (of->rope >= 0)
    rotate(x + of->rank, the_step->ropes[of->rope] + row * of->rotary, of->rotary);
  store_vector(of->kind, of->cache, place * width_of(of), scales, x, of->rank);
  store_vector(of->kind, of->cache, place * width_of(of) + of->rank, scales ? scales + 1 : 0,
               x + of->rank, of->rotary);
}

// `count` tokens' latents and keys from `place` on, as float32.
static const float *read_latents(const latent_arguments *of, long place, long count, float *room) {
  long width = width_of(of);
  if (of->kind == FLOAT32)
    return (const float *)of->cache + place * width;
  for (long token = 0; token < count; token++) {
    long at = place + token;
    const float *scales = of->scales ? of->scales + 2 * at : 0;
    float *to = room + token * width;
    read_vector(of->kind, of->cache, at * width, scales ? scales[0] : 0, to, of->rank);
    read_vector(of->kind, of->cache, at * width + of->rank, scales ? scales[1] : 0, to + of->rank,
                of->rotary);
  }
  return room;
}

// A head's query as it meets latents and rotated keys.
static void absorb(const latent_arguments *of, const step *the_step, long row, long head,
                   float *query) {
  float *x = the_step->buffers[of->queries] + (row * of->heads + head) * (of->key + of->rotary);
  const float *factors = of->kv_b + head * (of->key + of->value) * of->rank;
  if (of->rope >= 0)
    rotate(x + of->key, the_step->ropes[of->rope] + row * of->rotary, of->rotary);
  float factor = of->query_factors ? of->query_factors[the_step->positions[row]] : 1.0f;
  for (long at = 0; at < of->key + of->rotary; at++)
    x[at] *= factor;
  memset(query, 0, of->rank * sizeof(float));
  mix(factors, of->rank, x, of->key, of->rank, 0.0f, query);
  memcpy(query + of->rank, x + of->key, of->rotary * sizeof(float));
}

// Some heads of one row.
static void attend_heads(const void *argument, long block) {
  const job *the = argument;
  const latent_arguments *of = the->arguments;
  const step *the_step = the->the_step;
  long blocks = (of->heads + HEADS - 1) / HEADS, row = block / blocks;
  long first = block % blocks * HEADS, left = of->heads - first;
  long heads = left < HEADS ? left : HEADS, width = width_of(of);
  long place = the_step->slots[row] * of->slot_tokens, position = the_step->positions[row];
  head_sizes sizes = {width, of->rank, width, of->scale, 0};
  float queries[HEADS * width], mixed[HEADS * of->rank];
  float room[of->kind == FLOAT32 ? 1 : KEYS * width];
  state states[HEADS];

  memset(mixed, 0, heads * of->rank * sizeof(float));
  for (long head = 0; head < heads; head++) {
    absorb(of, the_step, row, first + head, queries + head * width);
    states[head] = (state){-INFINITY, 0};
  }
  for (long from = first_key(position, of->window, of->chunk); from <= position; from += KEYS) {
    long count = position + 1 - from < KEYS ? position + 1 - from : KEYS;
    const float *latents = read_latents(of, place + from, count, room);
    for (long head = 0; head < heads; head++)
      attend_keys(&sizes, queries + head * width, 0, latents, latents, count, &states[head],
                  mixed + head * of->rank);
  }
  for (long head = 0; head < heads; head++) {
    const float *factors = of->kv_b + (first + head) * (of->key + of->value) * of->rank;
    float *out = the_step->buffers[of->to] + (row * of->heads + first + head) * of->value;
    for (long at = 0; at < of->value; at++)
      out[at] = dot(mixed + head * of->rank, factors + (of->key + at) * of->rank, of->rank) /
                states[head].sum;
  }
}

void skynet_latent_step(const void *arguments, const step *the_step) {
  const latent_arguments *of = arguments;
  job the = {arguments, the_step};
  long numbers = 0;
  for (long row = 0; row < the_step->rows; row++) {
    store_latent(of, the_step, row);
    numbers += (the_step->positions[row] + 1 + of->key + of->value) * width_of(of) * of->heads;
  }
  run_blocks(attend_heads, &the, the_step->rows * ((of->heads + HEADS - 1) / HEADS),
             threads_for(the_step, numbers));
}
